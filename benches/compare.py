"""Times networks in bitgear and in ONNX Runtime, float and int8, one after the other.

    pip install numpy onnx onnxruntime sympy
    cargo build --release
    python benches/compare.py [MODEL.onnx ...] [--points w8a8,w4a4 --batch 1,64 --threads 1,2]

ONNX Runtime's int8 is its fastest on x86: QDQ, unsigned activations, signed weights, one scale per
channel, all graph optimizations. Both engines read the same kind of noise, get float inputs and give
scores. Every round starts a fresh process of each; a process reports the median of its calls, or with
--least the shortest, where other work disturbs the machine. The table shows the median over rounds of each
time, and of the ratios within a round: above 1, bitgear is faster. --threads 0 stands for all processors.

--cpu avx2 hides AVX-512, VNNI and AMX from both engines, so that each chooses what it would on a CPU without
them: it runs copies in which CPUID is answered by `only_avx2.c` (needs Linux, a C compiler and objdump).
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "models"
DEFAULT = [
    "cifar10_resnet20",
    "mlperftiny_kws_dscnn",
    "mlperftiny_vww_mobilenetv1_025_96",
    "imagenet_efficientnet_lite0",
]
SEED = 1


def noise(count: int, shape: list[int]) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal((count, *shape)).astype(np.float32)


def session(path: str, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def quantized(model: Path, folder: Path) -> Path:
    """ONNX Runtime's own int8 version of a model, calibrated on noise."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feed = session(str(model), 1).get_inputs()[0]

    class Reader(CalibrationDataReader):
        samples = iter(noise(16, feed.shape[1:]))

        def get_next(self):
            sample = next(self.samples, None)
            return None if sample is None else {feed.name: sample[None]}

    prepared, out = folder / "prepared.onnx", folder / f"{model.stem}-int8.onnx"
    quant_pre_process(str(model), str(prepared))
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return out


def worker(models: list[str], batches: list[int], args: argparse.Namespace) -> None:
    """Prints [[microseconds per inference of each model] of each batch size]."""
    typical = min if args.least else statistics.median
    rows = []
    for batch in batches:
        sessions = [session(model, int(args.threads)) for model in models]
        feed = sessions[0].get_inputs()[0]
        inputs = {feed.name: noise(batch, feed.shape[1:])}
        times: list[list[float]] = [[] for _ in models]
        for one in sessions:
            one.run(None, inputs)
        until = time.perf_counter() + args.seconds * len(models)
        while len(times[0]) < 5 or time.perf_counter() < until:
            for one, of_one in zip(sessions, times):
                for _ in range(-(-16 // batch)):
                    start = time.perf_counter()
                    one.run(None, inputs)
                    of_one.append((time.perf_counter() - start) * 1e6 / batch)
        rows.append([typical(of_one) for of_one in times])
    print(json.dumps(rows))


def without_cpuid(program: Path, copy: Path) -> None:
    """Copies an x86-64 program or library, with an undefined instruction in the place of each CPUID."""
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", "--file-offsets", program],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    code = bytearray(program.read_bytes())
    shift = 0
    for line in listing.splitlines():
        if section := re.match(r"([0-9a-f]+) <.*> \(File Offset: 0x([0-9a-f]+)\):", line):
            shift = int(section[1], 16) - int(section[2], 16)
        elif found := re.match(r" *([0-9a-f]+):\tcpuid", line):
            at = int(found[1], 16) - shift
            assert code[at : at + 2] == b"\x0f\xa2", (program, line)
            code[at : at + 2] = b"\x0f\xff"
    copy.write_bytes(code)
    copy.chmod(0o755)


def engines(cpu: str | None, folder: Path) -> tuple[str, dict[str, str]]:
    """The path of bitgear, and an environment, in which both engines see a CPU of that kind."""
    bitgear = ROOT / "target/release/bitgear"
    if cpu is None:
        return str(bitgear), dict(os.environ)
    library, copy = folder / "only_avx2.so", folder / "bitgear"
    source = Path(__file__).with_name("only_avx2.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    without_cpuid(bitgear, copy)
    package = Path(importlib.util.find_spec("onnxruntime").origin).parent
    shutil.copytree(package, folder / "onnxruntime")
    for part in package.glob("capi/*.so*"):
        without_cpuid(part, folder / "onnxruntime/capi" / part.name)
    return str(copy), {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(folder)}


def output(command: list[str], env: dict[str, str]) -> list:
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return json.loads(run.stdout)


def compare(model: Path, bitgear: str, env: dict[str, str], folder: Path, args: argparse.Namespace) -> None:
    """Prints the rows of one model."""
    batches = [int(batch) for batch in args.batch.split(",")]
    theirs = [str(quantized(model, folder)), str(model)]
    ours = [bitgear, "bench", str(model), "--json"]
    ours += ["--points", args.points]
    ours += ["--kernels", args.kernels] if args.kernels else []
    ours += ["--escalate", args.escalate] if args.escalate else []
    peer = [sys.executable, __file__, "--worker", *theirs]
    peer += ["--least"] if args.least else []
    rounds: dict[tuple, list[list[float]]] = {}
    for threads in args.threads.split(",") * args.rounds:
        shared = ["--batch", args.batch, "--threads", threads, "--seconds", str(args.seconds)]
        of_peer = dict(zip(batches, output([*peer, *shared], env)))
        for row in output([*ours, *shared], env):
            times = [row["min_us" if args.least else "median_us"], *of_peer[row["batch"]]]
            rounds.setdefault((row["point"], row["batch"], row["threads"]), []).append(times)
    for (point, batch, threads), times in rounds.items():
        us, int8, exact = (statistics.median(column) for column in zip(*times))
        by_int8 = statistics.median(t[1] / t[0] for t in times)
        by_float = statistics.median(t[2] / t[0] for t in times)
        print(
            f"{model.stem:34} {point:10} {batch:5} {threads:7} {us:9.1f} {int8:9.1f} {exact:9.1f}"
            f" {by_int8:7.2f} {by_float:7.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--points", default="w8a8,w7a8,w4a4,w2a2,w1a1")
    parser.add_argument("--batch", default="1,64")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--kernels", help="set of kernels, default the fastest")
    parser.add_argument("--cpu", choices=["avx2"], help="hide later instructions from both engines")
    parser.add_argument("--escalate", help="also a policy of the first two points")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure and round")
    parser.add_argument("--least", action="store_true", help="compare shortest calls")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        batches = [int(batch) for batch in args.batch.split(",")]
        worker([str(model) for model in args.models], batches, args)
        return
    models = args.models or [SHARED / f"{name}.onnx" for name in DEFAULT]
    header = ["model", "point", "batch", "threads", "us", "ORT int8", "ORT float", "x int8", "x float"]
    print("{:34} {:10} {:>5} {:>7} {:>9} {:>9} {:>9} {:>7} {:>7}".format(*header))
    with tempfile.TemporaryDirectory() as folder:
        bitgear, env = engines(args.cpu, Path(folder))
        for model in models:
            compare(model, bitgear, env, Path(folder), args)


if __name__ == "__main__":
    main()
