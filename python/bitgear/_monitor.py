"""Does a certificate still stand?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _native
from ._runner import Runner
from ._types import StrPath

if TYPE_CHECKING:
    from ._run import Run


class Monitor:
    """Compares what a policy meets with the samples it was certified on, without labels.

    `policy` is a runner, a run, or a file `policy.json`. An alarm is raised with probability `level`, ever,
    where nothing has changed. Feed it all answers, in the order of the inputs:

    >>> monitor = bg.Monitor(runner)                                  # doctest: +SKIP
    >>> for images in stream:                                         # doctest: +SKIP
    ...     answers = runner(images)
    ...     if monitor.observe(answers.confidences, answers.stages):
    ...         print(monitor.finding)
    """

    def __init__(self, policy: StrPath | Run | Runner, *, level: float = 0.01) -> None:
        if isinstance(policy, Runner):
            text = json.dumps(policy.policy)
        else:
            path = getattr(policy, "path", None)
            path = Path(policy) if path is None else path / "policy.json"  # type: ignore[arg-type]
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise _native.Error(f"cannot read `{path}`: {error}") from error
        self._native = _native.Monitor(text, level)

    def observe(self, confidences: npt.ArrayLike, stages: npt.ArrayLike) -> bool:
        """Take in `Answers.confidences` and `Answers.stages` (N), or what a device logged of them. Returns
        whether the stream has drifted, then or before."""
        return self._native.observe(_integers("confidences", confidences), _integers("stages", stages))

    @property
    def finding(self) -> dict[str, Any]:
        """What has been found so far, as `bitgear monitor --json` prints it: `inputs`, `drifted`,
        `noticed_at`, `since`, `evidence`, `escalation_rates` (now) and `certified_escalation_rates`, and
        more."""
        found: dict[str, Any] = json.loads(self._native.finding())
        return found

    def __repr__(self) -> str:
        found = self.finding
        state = f"drifted, noticed at input {found['noticed_at']}" if found["drifted"] else "no drift"
        return f"<bitgear.Monitor {found['inputs']} inputs, {state}>"


def _integers(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise _native.Error(
            f"{name}: expected integers (N), got {array.dtype.name} of shape {array.shape}"
        )
    return np.ascontiguousarray(array, dtype=np.int64)
