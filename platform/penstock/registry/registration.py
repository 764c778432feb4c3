"""Registers a run as a version: checked against its native weights, sealed, then visible."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import numpy.typing as npt

from penstock import audit
from penstock.errors import IntegrityError
from penstock.features.training_set import load_training_set
from penstock.features.training_set_pieces import take_rows
from penstock.handover import NATIVE_FOLDER
from penstock.registry.agreement import MAX_ROWS, Agreement, check_agreement
from penstock.registry.card import render_card
from penstock.registry.lock import model_lock
from penstock.registry.package import Bundle, read_bundle, remove_unfinished, seal, verify
from penstock.registry.quantization import quantize
from penstock.registry.versions import (
    CHALLENGER,
    CHAMPION,
    Entry,
    ModelRegistry,
    ModelVersion,
    VersionFacts,
)
from penstock.settings import Settings
from penstock.training.bundle import load_native

# Sealing takes a second or so; whoever registers beside us waits for it.
_LOCK_WAIT_S = 120.0


class TrainedRun(Protocol):
    """What registration needs of a run; `training.trainer.Run` has it."""

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        ...

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def training_set_id(self) -> str:
        """The training set that it was trained on."""
        ...

    @property
    def bundle_path(self) -> str:
        """The folder of files that it left."""
        ...


def register(settings: Settings, run: TrainedRun) -> ModelVersion:
    """Make the run a version of its model and its challenger; a second call finds the first's.

    Killed at any moment, it leaves a version that is there or one that nobody sees; the next call
    for the same run finishes it, under the same number.

    Raises:
        GateRefusedError: the ONNX graph and the native weights disagree.
        IntegrityError: the bundle is incomplete, or a folder of that number holds another run.
        BusyError: others have been registering versions of the model all the while.
    """
    registry = ModelRegistry(settings)
    entry = registry.find_entry(run.model, run.run_id)
    if entry is None or not entry.ready:
        entry = _add(settings, registry, run)
    with model_lock(settings, run.model, wait_s=_LOCK_WAIT_S):
        registry.finish_moves(run.model)
        # The newest version challenges, until it has been champion; an older run that is
        # registered again, or late, takes nobody's place.
        newest = registry.versions(run.model)[-1].version
        promoted = {move.to_version for move in registry.moves(run.model)}
        champion = registry.aliases(run.model).get(CHAMPION)
        challenges = entry.version == newest and newest not in promoted | {champion}
        made = registry.resolve(run.model, entry.version)
        audit.append(
            settings,
            "model.register",
            made.label,
            {"run_id": made.run_id, "digest": made.digest, "challenges": challenges},
            key=f"register {made.label} {made.digest}",
        )
        if challenges:
            registry.set_aliases(run.model, {CHALLENGER: newest})
    return registry.resolve(run.model, entry.version)


def _add(settings: Settings, registry: ModelRegistry, run: TrainedRun) -> Entry:
    # Read once: what is compared and described is what will be sealed.
    bundle = read_bundle(Path(run.bundle_path), model=run.model)
    rows = real_rows(settings, run.training_set_id, bundle.signature.feature_names)
    with TemporaryDirectory() as folder:
        _unpack_native(bundle, Path(folder))
        agreement = check_agreement(load_native(Path(folder)), bundle.onnx, rows)
    bundle = quantize(bundle, Path(run.bundle_path).parent, rows)
    with model_lock(settings, run.model, wait_s=_LOCK_WAIT_S):
        entry = registry.find_entry(run.model, run.run_id)
        if entry is None:
            entry = registry.add_entry(run.model, run.run_id)
        if not entry.ready:
            digest, sealed = _sealed(settings, registry, entry, run, bundle, agreement)
            registry.finish_entry(entry, _facts(run, sealed, digest, agreement))
    return entry


def _unpack_native(bundle: Bundle, folder: Path) -> None:
    """Put the native weights where their libraries read them from: files."""
    for name, content in bundle.files.items():
        if name.startswith(f"{NATIVE_FOLDER}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def real_rows(
    settings: Settings, training_set_id: str, feature_names: tuple[str, ...]
) -> npt.NDArray[np.float64]:
    """Draw up to 10,000 rows of the training set as float64 [n, F], NaN for missing."""
    made = load_training_set(settings, training_set_id)
    chosen = np.arange(made.num_rows)
    if made.num_rows > MAX_ROWS:
        random = np.random.default_rng(0)
        chosen = np.sort(random.choice(made.num_rows, MAX_ROWS, replace=False))
    features = take_rows(made, chosen, feature_names)
    columns = [features[name].cast(float).fill_null(np.nan).to_numpy() for name in feature_names]
    return np.column_stack(columns)


def _sealed(
    settings: Settings,
    registry: ModelRegistry,
    entry: Entry,
    run: TrainedRun,
    bundle: Bundle,
    agreement: Agreement,
) -> tuple[str, Bundle]:
    folder = registry.folder(entry.name, entry.version)
    remove_unfinished(folder.parent)
    if folder.exists():
        # Sealed by a call that was killed before it could say so.
        package = verify(folder, settings)
        if package.training.get("run_id") != run.run_id:
            raise IntegrityError(
                f"{folder} holds the run {package.training.get('run_id')}, not {run.run_id}",
                next_step="move that folder away if no registry needs it, then train again",
            )
        return package.digest, package
    card = render_card(
        bundle.signature,
        bundle.training,
        agreement,
        version=entry.version,
        quantization=bundle.quantization,
    )
    return seal(bundle, folder, settings, version=entry.version, card=card).digest, bundle


def _facts(run: TrainedRun, bundle: Bundle, digest: str, agreement: Agreement) -> VersionFacts:
    return VersionFacts(
        digest=digest,
        use_case=bundle.signature.use_case,
        estimator=bundle.signature.estimator,
        training_set_id=run.training_set_id,
        metrics=bundle.training.get("metrics", {}),
        agreement_rows=agreement.num_rows,
        agreement_max_difference=agreement.max_abs_difference,
        quantization=(bundle.quantization or {}).get("reason"),
    )
