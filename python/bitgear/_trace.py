"""What every sample did at every operating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _native
from ._types import StrPath


@dataclass(frozen=True)
class Block:
    """Answers of all N samples at one operating point and view."""

    point: str
    """Name of the operating point, or `float`."""
    view: str
    """`as-is` or `mirror`."""
    score_scale: float
    """Worth of one unit of scores and margins."""
    predicted: npt.NDArray[np.uint32]
    """Predicted classes (N)."""
    margin: npt.NDArray[np.int32]
    """Score margins (N), top-1 minus top-2, in units of `score_scale`."""
    scores: npt.NDArray[np.int32]
    """Kept scores (N, K): of all classes in order, or of more than 32 classes the 8 highest, falling."""
    score_classes: npt.NDArray[np.uint32]
    """Classes of the kept scores (N, K); (N, 0) where all are kept."""


@dataclass(frozen=True)
class Trace:
    """What N evaluated samples did at all operating points."""

    sample: npt.NDArray[np.int64]
    """Index of each sample in the data (N)."""
    split: npt.NDArray[np.str_]
    """`search`, `certification` or `test` (N)."""
    label: npt.NDArray[np.uint32]
    """Class of each sample (N)."""
    blocks: tuple[Block, ...]
    """One for each point and view."""
    class_mix: tuple[float, ...] | None = None
    """Share of each class in deployment, relative to their sum; None where it is as in the samples."""

    @classmethod
    def read(cls, path: StrPath) -> Trace:
        """Read `trace.parquet`."""
        sample, split, label, names, blocks, mix = _native.read_trace(path)
        answers = tuple(Block(*block) for block in blocks)
        return cls(sample, np.array(names)[split], label, answers, None if mix is None else tuple(mix))

    def block(self, point: str, view: str = "as-is") -> Block:
        """The answers at a point and view."""
        for block in self.blocks:
            if (block.point, block.view) == (point, view):
                return block
        known = ", ".join(sorted({block.point for block in self.blocks}))
        raise _native.Error(f"point `{point}` was not traced in view `{view}`, only {known}")

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The rows of `columns`, and kept scores with their classes, as a stream of Arrow (the C interface
        in a capsule): what `polars.DataFrame(trace)`, `pyarrow.table(trace)` and others take in without
        copies. One batch for each block; texts are dictionaries. A wish for another schema is not met.
        """
        names, splits = np.unique(self.split, return_inverse=True)
        return _native.arrow_stream(
            self.sample, splits.astype(np.int64), names.tolist(), self.label, self.blocks
        )

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """One row for each block and sample, as columns that `pandas.DataFrame`, `polars.DataFrame` and
        `pyarrow.table` take. Columns of a single block are the trace's own memory: `block(point).margin`."""
        rows, blocks = len(self.sample), self.blocks

        def repeated(values: list[Any]) -> npt.NDArray[Any]:
            return np.repeat(np.array(values), rows)

        margin = np.concatenate([block.margin for block in blocks])
        scale = repeated([block.score_scale for block in blocks])
        return {
            "sample": np.tile(self.sample, len(blocks)),
            "split": np.tile(self.split, len(blocks)),
            "label": np.tile(self.label, len(blocks)),
            "point": repeated([block.point for block in blocks]),
            "view": repeated([block.view for block in blocks]),
            "predicted": np.concatenate([block.predicted for block in blocks]),
            "margin": margin,
            "margin_real": margin * scale,
            "score_scale": scale,
        }
