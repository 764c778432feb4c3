"""Training: two workers of Ray Train beside torchrun, and a training set's way into tensors.

Both train the same net by the same loop on the same rows: as many workers, threads and batches, a
checkpoint after each epoch. They take turns, beside a Ray as `penstock up` starts it; their final
weights must be equal bit for bit. An epoch's time is the median of all but the first; the fixed
cost is what the whole fit takes beside its epochs.

From training set to tensors: the Parquet files as `penstock train` wrote them, read, checked,
scaled and held as float32 tensors, 15 features and the label.

--gpu measures one device instead; see _train_gpu.py.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _own_ray import own_ray

HERE = Path(__file__).resolve().parent
NUM_WORKERS = 2


def declare(given: argparse.Namespace, clock: Path):
    from penstock.training.declarations import TorchModule

    return TorchModule(
        module="_clocked_net:Clocked",
        options={
            "width": given.width,
            "num_layers": given.layers,
            "num_steps": -(-given.rows // given.batch),
            "clock": str(clock),
        },
        num_epochs=given.epochs,
        batch_size=given.batch,
        num_workers=NUM_WORKERS,
        use_gpu=False,
    )


def make_rows(num_rows: int, num_features: int):
    import numpy as np

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(num_rows, num_features)).astype(np.float32)
    return inputs, (inputs[:, 0] + inputs[:, 1] > 0.5).astype(np.int8)


def by_torchrun(config, inputs, labels, folder: Path) -> dict:
    import numpy as np

    rows = folder / "rows"
    np.save(f"{rows}.inputs.npy", inputs)
    np.save(f"{rows}.targets.npy", labels)
    (folder / "config.json").write_text(config.model_dump_json())
    start = time.time()
    subprocess.run(
        [
            str(Path(sys.executable).parent / "torchrun"),
            "--standalone",
            f"--nproc-per-node={NUM_WORKERS}",
            str(HERE / "_torchrun_peer.py"),
            str(folder / "config.json"),
            str(rows),
            str(folder / "checkpoints"),
        ],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        stderr=subprocess.DEVNULL,
    )
    end = time.time()
    with np.load(folder / "checkpoints" / "weights.npz") as weights:
        return {"start": start, "end": end, "weights": dict(weights)}


def by_ray_train(config, inputs, labels, folder: Path) -> dict:
    from penstock.training.estimators import torch_nets
    from penstock.training.estimators.base import FitJob

    # The graph is no part of either's training.
    torch_nets.export = lambda *_, **__: b""
    start = time.time()
    job = FitJob(name="fit", checkpoints=folder / "checkpoints", import_folders=(str(HERE),))
    fitted = torch_nets.fit(config, inputs, labels, job)
    end = time.time()
    weights = {name: value.numpy() for name, value in fitted.native.net.state_dict().items()}
    return {"start": start, "end": end, "weights": weights}


WAYS = {"ray train": by_ray_train, "torchrun": by_torchrun}


def measure(given: argparse.Namespace, name: str, inputs, labels) -> dict:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        found = WAYS[name](declare(given, folder / "clock"), inputs, labels, folder)
        # Each of the workers notes each beginning; an epoch begins with the first of them.
        told = sorted(float(line) for line in (folder / "clock").read_text().split())
    begins = told[::NUM_WORKERS]
    epochs = [after - before for before, after in itertools.pairwise(begins)][1:]
    epoch_s = statistics.median(epochs)
    fixed_s = found["end"] - found["start"] - given.epochs * epoch_s
    return {"epoch_s": epoch_s, "fixed_s": fixed_s, "weights": found["weights"]}


def compare(given: argparse.Namespace) -> dict[str, float]:
    import numpy as np

    inputs, labels = make_rows(given.rows, given.features)
    found = {name: [] for name in WAYS}
    with own_ray(num_cpus=NUM_WORKERS, OMP_NUM_THREADS="1"):
        # In turns, so that whatever else the machine does meets both of them.
        for _ in range(given.repeat):
            for name in WAYS:
                found[name].append(measure(given, name, inputs, labels))
            ours, theirs = (found[name][-1]["weights"] for name in WAYS)
            assert all(np.array_equal(ours[part], theirs[part]) for part in theirs), "they differ"
    print(
        f"{given.rows:,} rows x {given.features}, {given.layers} layers of {given.width}, batches "
        f"of {given.batch:,}, {NUM_WORKERS} workers of one thread; final weights equal"
    )
    print(f"{'way':12} {'epoch s':>8} {'min':>7} {'max':>7} {'fixed s':>8}")
    median = {}
    for name, turns in found.items():
        times = [turn["epoch_s"] for turn in turns]
        fixed_s = statistics.median(turn["fixed_s"] for turn in turns)
        median[name] = statistics.median(times), fixed_s
        print(
            f"{name:12} {median[name][0]:8.3f} {min(times):7.3f} {max(times):7.3f} {fixed_s:8.1f}"
        )
    ratios = [
        ours["epoch_s"] / theirs["epoch_s"]
        for ours, theirs in zip(found["ray train"], found["torchrun"], strict=True)
    ]
    return {
        "train_epoch_vs_torchrun": round(statistics.median(ratios), 3),
        "epoch_s": round(median["ray train"][0], 4),
        "fixed_s": round(median["ray train"][1], 1),
        "torchrun_fixed_s": round(median["torchrun"][1], 1),
    }


def into_tensors(num_rows: int, repeat: int) -> dict[str, float]:
    import numpy as np

    from penstock.features.training_set import TrainingSet

    names = tuple(f"f{number}" for number in range(15))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as made:
        training_set = write_training_set(Path(made), rng, names, num_rows)
        # Nothing of one is held during the next: a run makes its tensors once.
        took_s = [once(training_set, names) for _ in range(repeat)]
    assert isinstance(training_set, TrainingSet)
    rate = num_rows / statistics.median(took_s)
    print(f"training set to tensors: {num_rows:,} rows x 15 in {statistics.median(took_s):.2f} s")
    return {"tensors_rows_per_s": round(rate)}


def once(training_set, names: tuple[str, ...]) -> float:
    """Make the tensors, and give the seconds that it took."""
    import numpy as np
    import polars as pl
    import torch

    from penstock.training import preprocessing
    from penstock.training.row_sources import PieceRows
    from penstock.training.validation import check_labels

    start = time.perf_counter()
    rows = PieceRows.open(training_set, None, groups=[])
    labels = check_labels(rows.light, label="label", side="training")
    features = rows.matrix(rows.light, feature_names=names, side="training")
    scaling = preprocessing.fit(features, feature_names=names)
    inputs = torch.from_numpy(rows.scaled(scaling, features))
    targets = torch.from_numpy(labels.astype(np.float32))
    took_s = time.perf_counter() - start
    assert inputs.shape == (training_set.num_rows, 15)
    assert targets.sum() == rows.light.select(pl.col("label").sum()).item()
    return took_s


def write_training_set(folder: Path, rng, names: tuple[str, ...], num_rows: int):
    """Write files as a training set's sink does."""
    import numpy as np
    import polars as pl
    import pyarrow.parquet as pq

    from penstock.features.training_set import TrainingSet

    rows_per_file = 1 << 20
    for number, first in enumerate(range(0, num_rows, rows_per_file)):
        size = min(rows_per_file, num_rows - first)
        times = np.datetime64("2018-04-01", "us") + np.arange(first, first + size) * 10**6
        # Sums, shares and counts, as window features are: some repeat, most do not.
        values = {
            name: rng.gamma(2.0, 30.0, size) if place % 2 else rng.poisson(5, size).astype(float)
            for place, name in enumerate(names)
        }
        data = pl.DataFrame(
            {
                "key": rng.integers(0, 5000, size),
                "time": times,
                "label": (rng.random(size) < 0.01).astype(np.int64),
                **values,
            }
        )
        pq.write_table(
            data.to_arrow(),
            folder / f"data-{number:05}.parquet",
            compression="lz4",
            row_group_size=1 << 18,
            write_page_checksum=True,
        )
    return TrainingSet(
        id="0" * 64,
        use_case="bench",
        service="bench_v1",
        label="label",
        event_time="time",
        table_versions={},
        feature_names=names,
        num_rows=num_rows,
        path=str(folder),
    )


def main() -> None:
    if "--gpu" in sys.argv:
        # Another script, for it needs nothing of what this one does.
        arguments = [part for part in sys.argv[1:] if part != "--gpu"]
        sys.exit(subprocess.call([sys.executable, str(HERE / "_train_gpu.py"), *arguments]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="measure one device: _train_gpu.py")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=15)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5, help="turns")
    parser.add_argument("--tensor-rows", type=int, default=5_000_000)
    given = parser.parse_args()
    found = into_tensors(given.tensor_rows, given.repeat)
    found |= compare(given)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
