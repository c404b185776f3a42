"""Times tracing and searching in bitgear, and as many float inferences in ONNX Runtime.

    pip install numpy onnxruntime
    cargo build --release
    python benches/tracing.py [--points w2a2,w4a4,… --threads 2]

bitgear characterizes ResNet-20 on 5,000 images and says how long each step took. Compared are the steps that trace
the named points, the search, and the summary with its repeated choices, with the time that ONNX Runtime's float engine needs for as
many inferences on as many threads, at the quickest of some batch sizes. Other steps are shown, too: calibrating and
fitting the points; the float network, the widest point, and points quantized plainly, which a run traces besides.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
MODEL = SHARED / "models" / "cifar10_resnet20.onnx"
DATA = SHARED / "datasets" / "cifar10_test_5000.npz"
CALIBRATION = SHARED / "datasets" / "cifar10_calibration_1024.npz"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
POINTS = "w2a2,w3a3,w4a4,w5a5,w6a6,w7a7,w8a8,w3a3-f8l8,w4a4-f8l8,w5a5-f8l8"


def steps(points: str, threads: int) -> dict[str, float]:
    """Seconds of each step of a run from scratch."""
    with tempfile.TemporaryDirectory() as out:
        command = [ROOT / "target/release/bitgear", "characterize", MODEL, "--data", DATA]
        command += ["--calibration", CALIBRATION, "--scale", str(1 / 255)]
        command += ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]
        command += ["--accelerator", "envision-28nm", "--points", points]
        command += ["--threads", str(threads), "--times", "--out", out]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        run = subprocess.run(list(map(str, command)), check=True, text=True, **pipes)
    seconds: dict[str, float] = {}
    for line in run.stderr.splitlines()[1:]:
        step, _, taken = line.rsplit(maxsplit=2)
        seconds[step] = seconds.get(step, 0.0) + float(taken)
    return seconds


def onnxruntime(threads: int, images: int) -> tuple[int, float]:
    """Batch size at which float inferences are quickest, and seconds of one; images are prepared before."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    x = np.load(DATA)["x"][:images].astype(np.float32) / 255
    shape = (1, 3, 1, 1)
    x = (x - np.float32(MEAN).reshape(shape)) / np.float32(STD).reshape(shape)

    def seconds(batch: int) -> float:
        start = time.perf_counter()
        for first in range(0, images, batch):
            session.run(None, {name: x[first : first + batch]})
        return (time.perf_counter() - start) / images

    sizes = [1, 16, 64, 256]
    for batch in sizes:
        session.run(None, {name: x[:batch]})
    found = {batch: statistics.median(seconds(batch) for _ in range(3)) for batch in sizes}
    return min(found.items(), key=lambda item: item[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", default=POINTS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=int, default=2000, help="that ONNX Runtime is timed on")
    args = parser.parse_args()
    points = args.points.split(",")
    samples = len(np.load(DATA)["y"])
    batch, each = onnxruntime(args.threads, args.images)
    theirs = each * samples * len(points)
    seconds = steps(args.points, args.threads)
    for step, taken in seconds.items():
        print(f"{taken:9.2f} s  {step}")
    traced = sum(seconds[point] for point in points)
    searched = seconds["search"] + seconds["summary"]
    ours = traced + searched
    print(f"\n{samples} images, {len(points)} points, {args.threads} threads")
    print(f"bitgear: {traced:.2f} s tracing the points, {searched:.2f} s search and summary")
    besides = sum(seconds[step] for step in seconds if step.startswith(("float", "w16a16")) or step.endswith("-plain"))
    print(f"         {besides:.2f} s tracing the float network, the widest point and plain ones")
    print(f"ONNX Runtime float: {1e6 * each:.1f} us an inference at batch {batch} on {args.images} images, so {theirs:.2f} s")
    print(f"{theirs / ours:.2f} times as long as bitgear, {theirs / (ours + besides):.2f} with what it traces besides")


if __name__ == "__main__":
    main()
