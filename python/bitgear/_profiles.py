"""Accelerator profiles."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

from . import _native
from ._types import Channels, ModelLike, Samples, channels, model_file


@dataclass(frozen=True)
class Profile:
    """An accelerator profile that ships."""

    id: str
    """What `accelerator=` takes."""
    name: str
    """The device."""
    evidence: str
    """What its figures rest on, such as silicon or a model."""
    text: str = field(repr=False)
    """The profile, as TOML: a start for one's own."""


def accelerators() -> dict[str, Profile]:
    """The profiles that ship, by id."""
    return {profile[0]: Profile(*profile) for profile in _native.profiles()}


def measure(
    model: ModelLike,
    x: Samples,
    *,
    rounds: int = 21,
    scale: float = 1.0,
    mean: Channels = 0.0,
    std: Channels = 1.0,
    threads: int = 1,
) -> str:
    """Time a model on this CPU at each bit-width and write it down as a profile's text, in which a
    picojoule stands for a picosecond.

    All samples `x` (N, sample shape) run `rounds` times as one batch at every width; 64 are enough. Write
    the text to a file and give that as `accelerator`.
    """
    device = platform.processor() or platform.machine()
    with model_file(model) as path:
        return _native.measure(path, x, rounds, scale, channels(mean), channels(std), device, threads)
