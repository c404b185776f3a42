"""The main job."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from . import _native
from ._run import Run
from ._types import Channels, Labels, ModelLike, Report, Samples, StrPath, channels, model_file


def characterize(
    model: ModelLike,
    x: Samples,
    y: Labels | None = None,
    *,
    accelerator: StrPath,
    max_drop: float = 0.005,
    no_worse_than_static: bool = False,
    calibration: Samples | None = None,
    scale: float = 1.0,
    mean: Channels = 0.0,
    std: Channels = 1.0,
    mirror: bool = False,
    points: Sequence[str] | None = None,
    budget: float = 900.0,
    storage: Literal["independent", "nested"] = "independent",
    max_energy: float | None = None,
    max_escalation: float = 1.0,
    max_worst_energy: float | None = None,
    max_latency: float | None = None,
    max_class_drop: float | None = None,
    also_max_drop: Sequence[float] = (),
    class_mix: Sequence[float] | None = None,
    guarantee: float | None = None,
    confidence: float = 0.95,
    test: Literal["exact", "betting", "binomial", "conformal"] = "exact",
    stages: int = 2,
    margin_only: bool = False,
    sums: bool = True,
    calibration_samples: int = 512,
    search_share: float = 0.4,
    certification_share: float = 0.3,
    seed: int = 1,
    threads: int | None = None,
    out: StrPath | None = None,
    trace: StrPath | None = None,
    progress: Report | None = None,
) -> Run:
    """Find the cheapest policy for a model, data and an accelerator.

    Parameters
    ----------
    model
        ONNX classifier: a path, its bytes, or an `onnx.ModelProto`.
    x
        Samples (N, sample shape) as stored, before preprocessing: an array of uint8, bool, int8, int16,
        uint16, int32 or a float type, or the path of a `.npz` file or a folder of images.
    y
        Class of each sample (N). Without labels the float model's answers count as right.
    accelerator
        Id of a profile that ships (see `accelerators`), or a profile's file.
    max_drop
        Largest expected accuracy drop, as a fraction.
    no_worse_than_static
        Whether the policy is expected to lose no more than the best static point for `max_drop`, which often loses less
        than it may.
    calibration
        Samples for quantization, in the same forms as `x`; otherwise they are split off.
    scale, mean, std
        The network's input is (value * scale - mean) / std; mean and std are one number, or one per
        channel.
    mirror
        Whether a mirrored image has the same label: then it is a second view of each input.
    points
        Operating points to trace, such as `["w4a4", "w3a3-f8l8"]`; `["all"]` for 1 to 16 bits. By default
        they are chosen for the accelerator.
    budget
        Nominal seconds of measuring, fitting and tracing that the choice of points keeps to.
    storage
        Whether each point has weights of its own or narrow ones read the widest one's leading bits.
    max_energy
        Instead of `max_drop`: the least drop at a mean chip energy of at most so many microjoule.
    max_escalation
        Largest share of inputs that the first stage hands on.
    max_worst_energy
        Largest chip energy of an input that all stages run for, in microjoule.
    max_latency
        Longest time of an input that all stages run for, in microseconds, where the profile knows times.
    max_class_drop
        Largest expected drop of any class, as a fraction.
    also_max_drop
        Further targets: the bundle gets a policy for each, named `max-drop-` and the target.
    class_mix
        Share of each class in deployment, where it is not that of the samples: these are weighted by it.
    guarantee, confidence, test
        A drop that is not exceeded with this confidence, and how it is proved; only policies are taken
        that are proved to keep it.
    stages
        Most stages of the policy, 1 to 4.
    margin_only, sums
        Whether gates learn nothing, and whether a stage's scores may be summed with those before.
    calibration_samples, search_share, certification_share
        How samples are divided; what is left is for the test. Without `guarantee` the
        certification samples choose, too.
    seed, threads
        Seed of everything random; number of threads, by default all processors. Results depend on the
        seed alone.
    out
        Folder for what is written, in which a run that was ended continues. By default one that lasts as
        long as the result.
    trace
        Trace of this very run, instead of running the samples: a file, or a folder of fragments from many
        machines.
    progress
        Called with the step's name, samples done and samples in all (0 where they aren't counted).

    Raises
    ------
    Error
        When an input can't be used. `KeyboardInterrupt` ends the work after the batch or point that runs.
    """
    options: dict[str, Any] = {
        "accelerator": str(accelerator),
        "max_drop": max_drop,
        "no_worse_than_static": no_worse_than_static,
        "max_energy": max_energy,
        "max_escalation": max_escalation,
        "max_worst_energy": max_worst_energy,
        "max_latency": max_latency,
        "max_class_drop": max_class_drop,
        "also_max_drop": list(also_max_drop),
        "class_mix": None if class_mix is None else list(class_mix),
        "guarantee": guarantee,
        "confidence": confidence,
        "test": test,
        "stages": stages,
        "margin_only": margin_only,
        "sums": sums,
        "mirror": mirror,
        "points": None if points is None else list(points),
        "budget": budget,
        "storage": storage,
        "scale": scale,
        "mean": channels(mean),
        "std": channels(std),
        "calibration_samples": calibration_samples,
        "search_share": search_share,
        "certification_share": certification_share,
        "seed": seed,
        "threads": threads,
    }
    temporary = tempfile.TemporaryDirectory(prefix="bitgear-") if out is None else None
    folder = Path(temporary.name if temporary is not None else out or "")
    with model_file(model) as path:
        _native.characterize(path, x, y, calibration, folder, options, trace, progress)
    return Run(folder, _temporary=temporary)
