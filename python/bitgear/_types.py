"""What the functions take."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, Union

import numpy.typing as npt

StrPath: TypeAlias = Union[str, "os.PathLike[str]"]
Samples: TypeAlias = Union[npt.ArrayLike, StrPath]
Labels: TypeAlias = Union[npt.ArrayLike, StrPath]
Channels: TypeAlias = Union[float, Sequence[float]]
Report: TypeAlias = Callable[[str, int, int], Any]


class Model(Protocol):
    """A model in memory, such as `onnx.ModelProto`."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802


ModelLike: TypeAlias = Union[StrPath, bytes, Model]


def channels(values: Channels) -> list[float]:
    """One value, or one per channel, as a list."""
    return [float(v) for v in values] if isinstance(values, Sequence) else [float(values)]


@contextlib.contextmanager
def model_file(model: ModelLike) -> Iterator[Path]:
    """The file of a model, which for one in memory lasts as long as the context."""
    if isinstance(model, (str, os.PathLike)):
        yield Path(model)
        return
    content = model if isinstance(model, bytes) else model.SerializeToString()
    with tempfile.TemporaryDirectory(prefix="bitgear-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        yield path
