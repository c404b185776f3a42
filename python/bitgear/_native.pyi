from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

_Path: TypeAlias = str | PathLike[str]

__all__ = [
    "Error",
    "Monitor",
    "Outline",
    "Runner",
    "Tracer",
    "__version__",
    "arrow_stream",
    "certify",
    "characterize",
    "compare",
    "measure",
    "profiles",
    "read_trace",
    "sample_hashes",
]

__version__: str

class Error(ValueError): ...

@final
class Runner:
    def __new__(cls, bundle: _Path | bytes, threads: int | None, policy: str) -> Runner: ...
    def __call__(
        self, x: npt.ArrayLike, preprocessed: bool
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.float64],
        npt.NDArray[np.int64],
        npt.NDArray[np.float64],
        npt.NDArray[np.int64],
    ]: ...
    def to_bytes(self) -> bytes: ...
    @property
    def input_shape(self) -> list[int]: ...
    @property
    def classes(self) -> int: ...
    @property
    def points(self) -> list[str]: ...
    @property
    def policy(self) -> str: ...

@final
class Monitor:
    def __new__(cls, policy: str, level: float) -> Monitor: ...
    def observe(
        self, confidences: npt.NDArray[np.int64], stages: npt.NDArray[np.int64]
    ) -> bool: ...
    def finding(self) -> str: ...

@final
class Outline:
    def __new__(
        cls, shape: Sequence[int], kind: str, hashes: bytes, labels: npt.ArrayLike | None
    ) -> Outline: ...

@final
class Tracer:
    def __new__(cls, plan: bytes, threads: int | None) -> Tracer: ...
    def trace(
        self, x: npt.ArrayLike, y: npt.ArrayLike | None, samples: Sequence[int]
    ) -> bytes | None: ...

def sample_hashes(x: npt.ArrayLike) -> tuple[bytes, str]: ...
def characterize(
    model: _Path,
    x: npt.ArrayLike | _Path | Outline,
    y: npt.ArrayLike | _Path | None,
    calibration: npt.ArrayLike | _Path | None,
    out: _Path,
    options: dict[str, Any],
    origin: _Path | Callable[[str, bytes, Path], Any] | None,
    report: Callable[[str, int, int], Any] | None,
) -> None: ...
def certify(
    bundle: _Path,
    model: _Path,
    x: npt.ArrayLike | _Path,
    y: npt.ArrayLike | _Path | None,
    guarantee: float | None,
    confidence: float,
    test: str,
    threads: int | None,
) -> str: ...
def compare(
    run: _Path, model: _Path, profiles: Sequence[str], threads: int | None
) -> list[tuple[str, str]]: ...
def measure(
    model: _Path,
    x: npt.ArrayLike | _Path,
    rounds: int,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    device: str,
    threads: int,
) -> str: ...
def arrow_stream(
    sample: npt.NDArray[np.int64],
    splits: npt.NDArray[np.int64],
    split_names: Sequence[str],
    label: npt.NDArray[np.uint32],
    blocks: Sequence[Any],
) -> object: ...
def profiles() -> list[tuple[str, str, str, str]]: ...
def read_trace(
    path: _Path,
) -> tuple[
    npt.NDArray[np.int64],
    npt.NDArray[np.uint8],
    npt.NDArray[np.uint32],
    list[str],
    list[
        tuple[
            str,
            str,
            float,
            npt.NDArray[np.uint32],
            npt.NDArray[np.int32],
            npt.NDArray[np.int32],
            npt.NDArray[np.uint32],
        ]
    ],
    list[float] | None,
]: ...
