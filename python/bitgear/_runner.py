"""Policies that run."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _native
from ._html import table
from ._types import StrPath

if TYPE_CHECKING:
    from typing_extensions import disjoint_base

    from ._run import Run
else:

    def disjoint_base(cls):
        return cls


class _Answers(NamedTuple):
    labels: npt.NDArray[np.int64]
    """Predicted classes (N)."""
    scores: npt.NDArray[np.float64]
    """Scores (N, classes) of the stage that answered, in units of the network's own scores."""
    stages: npt.NDArray[np.int64]
    """Index of the stage that answered (N); it and all before it ran."""
    energies: npt.NDArray[np.float64]
    """Modelled energy (N) of the stages that ran, off-chip traffic included, in microjoule."""


@disjoint_base
class Answers(_Answers):
    """Answers to N inputs: a tuple of labels, scores, stages and energies, which also knows how sure the
    first stage was."""

    confidences: npt.NDArray[np.int64]
    """What the first stage's gate compared with its threshold (N), for `Monitor`."""


class Runner:
    """A policy with its integer networks, packed for this CPU.

    `bundle` is a file `model.bitgear`, its bytes, or a run; `threads` is their number, by default all
    processors; `policy` names one of several policies of the bundle. Answers are equal on every CPU and at
    any number of threads. The interpreter's lock is released while networks run; a runner may be shared by
    threads, pickled, and used after a fork.
    """

    def __init__(
        self, bundle: StrPath | bytes | Run, *, threads: int | None = None, policy: str = "main"
    ) -> None:
        source = bundle if isinstance(bundle, (str, bytes, os.PathLike)) else bundle.bundle
        self._native = _native.Runner(source, threads, policy)
        self._threads = threads

    def __call__(self, x: npt.ArrayLike, *, preprocessed: bool = False) -> Answers:
        """Answers to samples (N, sample shape): an array, a tensor, or anything else that NumPy takes.

        Values are preprocessed as the bundle says, unless they are `preprocessed` already.
        """
        labels, scores, stages, energies, confidences = self._native(x, preprocessed)
        answers = Answers(labels, scores, stages, energies)
        answers.confidences = confidences
        return answers

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self._native.input_shape)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._native.classes

    @property
    def points(self) -> list[str]:
        """Names of the stages' operating points, the last resort included."""
        return self._native.points

    @property
    def policy(self) -> dict[str, Any]:
        """Stages and thresholds, as in `policy.json`."""
        found: dict[str, Any] = json.loads(self._native.policy)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        # The bytes are those of the one policy, where it was chosen by name.
        return _restore, (self._native.to_bytes(), self._threads)

    def __repr__(self) -> str:
        return f"<bitgear.Runner {' > '.join(self.points)}, input {self.input_shape}>"

    def _repr_html_(self) -> str:
        policy = self.policy
        stages = [*policy["stages"], policy["last_resort"]]
        rows = []
        for number, (stage, energy) in enumerate(zip(stages, policy["stage_energy_uj"]), 1):
            until = f"from a margin of {stage['accept_at']:.4g}" if "accept_at" in stage else "always"
            view = "" if stage["view"] == "as-is" else f", {stage['view']} input"
            rows.append((str(number), stage["point"] + view, until, f"{energy['total']:.3f}"))
        head = ("stage", "operating point", "answers", "energy (uJ)")
        return table(f"policy on inputs of shape {self.input_shape}", head, rows)


def _restore(bundle: bytes, threads: int | None) -> Runner:
    return Runner(bundle, threads=threads)
