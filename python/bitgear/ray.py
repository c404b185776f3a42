"""Characterization on many machines, with Ray Data (`pip install 'bitgear[ray]'`).

Networks are quantized once, here. Shards of the data are traced where they are, each into a fragment of the
trace; a shard whose worker is lost is traced again by another. Fragments are joined here, and the policy
is chosen from them. It is the policy of a single machine, byte for byte, where all machines have the same
CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _native
from ._characterize import characterize as _characterize
from ._run import Run
from ._types import ModelLike, Samples, StrPath

try:
    import fsspec
    import ray
    import ray.data
except ImportError:
    raise ImportError("many machines need Ray: pip install 'bitgear[ray]'") from None

Batch = dict[str, npt.NDArray[Any]]
COLUMNS = ("x", "sample")


def dataset(
    x: npt.ArrayLike, y: npt.ArrayLike | None = None, *, shards: int = 16
) -> ray.data.Dataset:
    """A Ray data set of samples (N, sample shape) and labels (N), if any, that fit into this machine's
    memory."""
    columns = {"x": np.asarray(x)} | ({} if y is None else {"y": np.asarray(y)})
    count = len(columns["x"])
    if y is not None and len(columns["y"]) != count:
        raise _native.Error(f"labels: expected {count}, one per sample, got {len(columns['y'])}")
    held = ray.put(columns)

    def rows(batch: Batch) -> Batch:
        found = {name: column[batch["id"]] for name, column in ray.get(held).items()}
        return {**found, "sample": batch["id"]}

    numbers = ray.data.range(count, override_num_blocks=max(1, min(shards, count)))
    filled = numbers.map_batches(rows, batch_size=None, batch_format="numpy")
    found: ray.data.Dataset = filled.materialize()
    return found


def characterize(
    dataset: ray.data.Dataset,
    model: ModelLike,
    *,
    accelerator: StrPath,
    calibration: Samples,
    workers: int = 2,
    cpus: int = 1,
    batch_size: int = 500,
    fragments: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Find the cheapest policy for a model, data on many machines, and an accelerator.

    Parameters
    ----------
    dataset
        Rows of `x` (one sample, as stored), `y` (its class) and `sample`: its index, from 0 on, in any
        order. Without a column `y` the float model's answers count as right. The data is read twice: for
        its hash, and to be traced; once more without labels, and once more for `storage="nested"`.
    model, accelerator, calibration, options
        As in `bitgear.characterize`. Calibration samples are needed here.
    workers, cpus
        Processes that trace, and processors of each. Leave some for reading the data.
    batch_size
        Samples that are traced together, into one fragment.
    fragments
        Where to keep the fragments too: an empty folder, as a path or any URL that fsspec knows, such as
        `s3://bucket/folder`, with `storage_options`. `bitgear characterize --trace` takes such a folder.
    """
    outline = _outline(dataset, batch_size)

    def trace(round: str, plan: bytes, folder: Path) -> None:
        # Fragments of other rounds are no trace that a decision can be taken from.
        keep = (fragments if round == "trace" else None, dict(storage_options or {}))
        traced = dataset.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(plan), cpus, keep),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            batch_size=batch_size,
            batch_format="numpy",
        )
        for row in traced.iter_rows():
            if row["fragment"]:
                (folder / row["name"]).write_bytes(row["fragment"])

    return _characterize(
        model,
        outline,  # type: ignore[arg-type]
        accelerator=accelerator,
        calibration=calibration,
        trace=trace,  # type: ignore[arg-type]
        **options,
    )


class _Worker:
    """Traces batches of samples into fragments."""

    def __init__(
        self, plan: ray.ObjectRef[bytes], cpus: int, keep: tuple[str | None, dict[str, Any]]
    ) -> None:
        self.tracer = _native.Tracer(ray.get(plan), cpus)
        self.folder, self.options = keep

    def __call__(self, batch: Batch) -> Batch:
        samples = batch["sample"].tolist()
        fragment = self.tracer.trace(batch["x"], batch.get("y"), samples) or b""
        # A batch that is traced again has the same name and the same bytes.
        name = f"{min(samples):012d}.parquet"
        if fragment and self.folder is not None:
            files, root = fsspec.core.url_to_fs(self.folder, **self.options)
            files.makedirs(root, exist_ok=True)
            files.pipe_file(f"{root}/{name}", fragment)
        return {"name": np.array([name]), "fragment": np.array([fragment], object)}


def _identify(batch: Batch) -> Batch:
    """What the data set's hash needs of some samples."""
    x = batch["x"]
    hashes, kind = _native.sample_hashes(x)
    return {
        **{name: batch[name] for name in ("sample", "y") if name in batch},
        "hash": np.frombuffer(hashes, np.uint8).reshape(len(x), 32),
        "kind": np.array([kind] * len(x)),
        "shape": np.array([x.shape[1:]] * len(x)),
    }


def _outline(dataset: ray.data.Dataset, batch_size: int) -> _native.Outline:
    columns = dataset.columns() or []
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise _native.Error(
            f"dataset: expected columns `x`, `sample` and, with labels, `y`, got {columns}\n"
            "hint: `sample` is the index of each sample in the whole, from 0 on"
        )
    found = dataset.map_batches(_identify, batch_size=batch_size, batch_format="numpy")
    batches = list(found.iter_batches(batch_size=None, batch_format="numpy"))
    if not batches:
        raise _native.Error("dataset: there are no samples")
    kinds = {(str(kind), *shape) for b in batches for kind, shape in zip(b["kind"], b["shape"].tolist())}
    if len(kinds) > 1:
        raise _native.Error(f"dataset: samples differ in type or shape: {sorted(kinds)}")
    joined = batches[0].keys() - {"kind", "shape"}
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in joined}
    sample, label = whole["sample"], whole.get("y")
    order = np.argsort(sample, kind="stable")
    if not np.array_equal(sample[order], np.arange(len(sample))):
        raise _native.Error(
            f"dataset: `sample` must hold each index from 0 to {len(sample) - 1} once"
        )
    kind, *shape = kinds.pop()
    label = None if label is None else label[order]
    return _native.Outline([len(sample), *shape], kind, whole["hash"][order].tobytes(), label)
