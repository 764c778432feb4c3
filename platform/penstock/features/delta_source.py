"""A Feast data source over a Delta table, named as Penstock names tables or by its path."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from feast.data_source import DataSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import RepoConfig
from feast.type_map import pa_to_feast_value_type
from feast.value_type import ValueType

from penstock.data import tables
from penstock.errors import DataError, DeclarationError
from penstock.settings import load_settings
from penstock.use_cases import split_name


class DeltaSource(DataSource):
    """Feature values in a Delta table; only Penstock's offline store reads it.

    Give exactly one of `table` ("use_case.name", found through the offline store's `tables_root`,
    else through the project's settings at the time of reading) and `path` (any Delta table;
    relative: to the feature repo).
    """

    def __init__(
        self,
        *,
        table: str | None = None,
        path: str | None = None,
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        name: str | None = None,
        field_mapping: dict[str, str] | None = None,
        description: str = "",
        tags: dict[str, str] | None = None,
        owner: str = "",
    ) -> None:
        if (table is None) == (path is None):
            raise DeclarationError(
                f"a DeltaSource has table={table!r} and path={path!r}",
                allowed="exactly one of them",
            )
        if table is not None:
            split_name(table)
        self.table = table
        self.path = path
        super().__init__(
            name=name or table or str(path),
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping,
            description=description,
            tags=tags,
            owner=owner,
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DeltaSource)
            and bool(super().__eq__(other))  # type: ignore[no-untyped-call]  # feast's own
            and (self.table, self.path) == (other.table, other.path)
        )

    def __hash__(self) -> int:
        return hash((self.name, self.table, self.path))

    def location(self, config: RepoConfig | None = None) -> str:
        """Where the table's files are.

        Raises:
            SettingsError: named by `table`, and there is neither a `tables_root` nor a project.
        """
        if self.path is not None:
            if "://" in self.path or config is None or config.repo_path is None:
                return self.path
            return str(Path(config.repo_path) / self.path)
        use_case, name = split_name(str(self.table))
        tables_root = getattr(config.offline_store, "tables_root", None) if config else None
        if tables_root is not None:
            return str(Path(tables_root) / use_case / name)
        return str(load_settings().table_path(use_case, name))

    def scan(self, config: RepoConfig | None = None, *, version: int | None = None) -> pl.LazyFrame:
        """The newest version or the one asked for, lazily."""
        return tables.scan_path(self.location(config), version=version)

    def source_type(self) -> Any:
        """Feast's word for a source that it does not know itself."""
        return DataSourceProto.SourceType.CUSTOM_SOURCE

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> "DeltaSource":
        """Read what `to_proto` wrote into Feast's registry."""
        options = json.loads(data_source.custom_options.configuration)
        return DeltaSource(
            table=options.get("table"),
            path=options.get("path"),
            name=data_source.name,
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
            field_mapping=dict(data_source.field_mapping),
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
        )

    def _to_proto_impl(self) -> DataSourceProto:
        options = {"table": self.table} if self.table is not None else {"path": self.path}
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=f"{DeltaSource.__module__}.{DeltaSource.__qualname__}",
            custom_options=DataSourceProto.CustomSourceOptions(
                configuration=json.dumps(options).encode()
            ),
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            field_mapping=self.field_mapping,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )

    def validate(self, config: RepoConfig) -> None:
        """Check the declared timestamp columns against the table, where it exists already.

        A feature repo is applied before its first feature table is built, so an absent table is
        no error here.
        """
        if not tables.exists_path(self.location(config)):
            return
        found = [name for name, _ in self.get_table_column_names_and_types(config)]
        for column in (self.timestamp_field, self.created_timestamp_column):
            if column and column not in found:
                raise DataError(
                    f"the table of the source {self.name!r} has no column {column!r}",
                    allowed=", ".join(found),
                )

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        """How the type names of `get_table_column_names_and_types` become Feast's."""
        mapping: Callable[[str], ValueType] = pa_to_feast_value_type
        return mapping

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        """Each column's name and Arrow type, as Feast infers a view's schema from it."""
        schema = arrow_schema(self.scan(config).collect_schema())
        return [(field.name, str(field.type)) for field in schema]

    def get_table_query_string(self) -> str:
        """Refuse: no SQL engine reads this source."""
        raise DeclarationError(
            f"the source {self.name!r} is a Delta table, not a SQL table",
            next_step="set offline_store.type to penstock.features.offline_store."
            "PenstockOfflineStore in feature_store.yaml",
        )


def arrow_schema(schema: pl.Schema) -> pa.Schema:
    """The Arrow schema with the types that Feast knows: no large or view strings and lists."""
    exported = pl.DataFrame(schema=schema).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in exported])


def plain_type(dtype: pa.DataType) -> pa.DataType:
    """The type with 32-bit offsets and no dictionary: Feast's type map knows no other kind."""
    if pa.types.is_large_string(dtype):
        return pa.string()
    if pa.types.is_large_binary(dtype):
        return pa.binary()
    if pa.types.is_dictionary(dtype):
        return plain_type(dtype.value_type)
    if pa.types.is_large_list(dtype):
        return pa.list_(plain_type(dtype.value_type))
    return dtype
