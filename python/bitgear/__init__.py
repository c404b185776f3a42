"""bitgear shifts a trained network between bit-widths per input: low for the easy ones, high for the few
that need it.

>>> import bitgear as bg
>>> run = bg.characterize("model.onnx", x, y, accelerator="envision-28nm")   # doctest: +SKIP
>>> labels, scores, stages, energies = run.runner()(x)                       # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

from ._characterize import characterize
from ._native import Error, __version__
from ._monitor import Monitor
from ._profiles import Profile, accelerators, measure
from ._run import Run, certify, compare, load
from ._runner import Answers, Runner
from ._trace import Block, Trace

__all__ = [
    "Answers",
    "Block",
    "Error",
    "Monitor",
    "Profile",
    "Run",
    "Runner",
    "Trace",
    "__version__",
    "accelerators",
    "certify",
    "characterize",
    "compare",
    "load",
    "measure",
]


def __getattr__(name: str) -> Any:
    # Ray is large and optional.
    if name == "ray":
        return importlib.import_module(".ray", __name__)
    raise AttributeError(f"module `bitgear` has no attribute `{name}`")
