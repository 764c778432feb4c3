"""How a use case declares what a search may try: for each estimator, fields and their ranges."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from penstock.errors import DeclarationError, unknown_name
from penstock.records import Record

Value = int | float | str | bool | None | tuple[int, ...]
"""What a field of an estimator can be set to by a search."""
_GOLDEN = 0.618
_Config = TypeVar("_Config", bound=BaseModel)


class _Range(Record):
    @model_validator(mode="after")
    def _check_order(self) -> Self:
        low, high = getattr(self, "low"), getattr(self, "high")  # noqa: B009  # both kinds have them
        if not low < high:
            raise ValueError(f"from {low} to {high} there is nothing to search; low < high")
        if getattr(self, "log") and low <= 0:  # noqa: B009  # the same
            raise ValueError(f"a logarithmic range starts above 0, this one at {low}")
        return self


class Ints(_Range):
    """Whole numbers from `low` to `high`, both among them."""

    kind: Literal["ints"] = "ints"
    low: int
    high: int
    log: bool = False
    """Equally many tries for each factor instead of for each step."""

    def __init__(self, low: int, high: int, *, log: bool = False, **kind: Any) -> None:
        super().__init__(low=low, high=high, log=log, **kind)  # type: ignore[call-arg]  # BaseModel's own

    def nearest(self, value: float) -> int:
        """Give the value of the range that is nearest."""
        return min(max(round(value), self.low), self.high)

    @property
    def probes(self) -> tuple[int, ...]:
        """Values that any field which can be searched so takes."""
        return self.low, self.high


class Floats(_Range):
    """Numbers from `low` to `high`."""

    kind: Literal["floats"] = "floats"
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    """Equally many tries for each factor instead of for each step."""

    def __init__(self, low: float, high: float, *, log: bool = False, **kind: Any) -> None:
        super().__init__(low=low, high=high, log=log, **kind)  # type: ignore[call-arg]  # BaseModel's own

    def nearest(self, value: float) -> float:
        """Give the value of the range that is nearest."""
        return min(max(value, self.low), self.high)

    @property
    def probes(self) -> tuple[float, ...]:
        """Values that any field which can be searched so takes; one of them is no whole number."""
        return self.low, self.high, self.low + _GOLDEN * (self.high - self.low)


class Choice(Record):
    """One of the options, without an order."""

    kind: Literal["choice"] = "choice"
    options: tuple[Value, ...]

    def __init__(self, options: Sequence[Value], **kind: Any) -> None:
        super().__init__(options=tuple(options), **kind)  # type: ignore[call-arg]  # BaseModel's own

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if len(set(self.options)) < 2:
            raise ValueError(f"a choice of {list(self.options)} leaves nothing to search")
        return self

    @property
    def probes(self) -> tuple[Value, ...]:
        """Every option."""
        return self.options


Dimension = Annotated[Ints | Floats | Choice, Field(discriminator="kind")]


class Search(Record):
    """By field of the estimator, what a search tries: `Search(max_depth=Ints(2, 10))`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Dimension] = Field(init=False)
    _never: ClassVar[frozenset[str]] = frozenset({"kind", "seed"})

    @property
    def dimensions(self) -> dict[str, Ints | Floats | Choice]:
        """The fields in the order of declaration."""
        return dict(self.__pydantic_extra__ or {})

    def check(self, estimator: str, config: BaseModel) -> None:
        """Refuse fields that the estimator does not have, and values that it would refuse.

        Raises:
            NotFoundError: no such field; the nearest is offered.
            DeclarationError: nothing to search, or a bound that the field does not allow.
        """
        if not self.dimensions:
            raise DeclarationError(
                f"the search space of {estimator!r} is empty",
                allowed="a range or a choice for at least one field: Search(max_depth=Ints(2, 10))",
            )
        fields = sorted(set(type(config).model_fields) - self._never)
        for name, dimension in self.dimensions.items():
            if name not in fields:
                raise unknown_name(f"field of {type(config).__name__} to search", name, fields)
            for probe in dimension.probes:
                changed = with_values(config, {name: probe}, of=f"the search of {estimator!r}")
                if getattr(changed, "task", None) != getattr(config, "task", None):
                    raise DeclarationError(
                        f"the search of {estimator!r} would change what it predicts: "
                        f"{name} = {probe!r}",
                        allowed="options of one kind of label",
                    )


def check_searches(searches: Mapping[str, Search], estimators: Mapping[str, BaseModel]) -> None:
    """Check what is declared to be searched against the declared estimators.

    Raises:
        NotFoundError: there is no such estimator, or field.
        DeclarationError: a space is empty, or reaches beyond what a field allows.
    """
    for name, search in searches.items():
        if name not in estimators:
            raise unknown_name("estimator to search", name, estimators)
        search.check(name, estimators[name])


def with_values(config: _Config, values: Mapping[str, Any], *, of: str) -> _Config:
    """Give the config with some of its fields set anew, checked as a declaration is.

    Raises:
        DeclarationError: a field does not take its value, or two values contradict each other.
    """
    try:
        return type(config).model_validate(config.model_dump() | dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "the combination"
        shown = ", ".join(f"{key} = {value!r}" for key, value in values.items())
        raise DeclarationError(
            f"{of} tries {shown}, which {type(config).__name__} does not take",
            allowed=f"{name}: {first['msg'].removeprefix('Value error, ')}",
        ) from None
