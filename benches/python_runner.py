"""What calling a policy from Python costs: `bitgear.Runner` beside the same runner in Rust.

    pip install ./python
    cargo build --release -p bitgear --example runner_speed
    python benches/python_runner.py RUN DATA.npz [--batch 1,64 --rounds 9 --calls 400]

RUN is the folder of a finished run. Both start from the same stored samples and give decisions, on one
thread. Every round times a fresh process of the Rust runner and this process's, in turns; the table shows
the medians over rounds of each time, in microseconds per inference, and of the ratios within a round:
above 1, Python is slower.
"""

import argparse
import statistics
import subprocess
import time
from pathlib import Path

import bitgear as bg
import numpy as np

RUST = Path(__file__).resolve().parents[1] / "target/release/examples/runner_speed"


def time_python(runner: bg.Runner, x: np.ndarray, batch: int, calls: int) -> float:
    times = []
    for call in range(calls):
        first = call * batch % (len(x) - batch + 1)
        samples = x[first : first + batch]
        start = time.perf_counter()
        runner(samples)
        times.append((time.perf_counter() - start) * 1e6 / batch)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch", default="1,64")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=400)
    options = parser.parse_args()
    bundle = bg.load(options.run).bundle
    runner = bg.Runner(bundle, threads=1)
    x = np.load(options.data)["x"]
    print("batch   Python us     Rust us   ratio")
    for batch in map(int, options.batch.split(",")):
        calls = max(20, options.calls // batch)
        python, rust = [], []
        for _ in range(options.rounds):
            command = [RUST, bundle, options.data, str(batch), str(calls)]
            rust.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
            python.append(time_python(runner, x, batch, calls))
        ratio = statistics.median(p / r for p, r in zip(python, rust))
        print(f"{batch:5} {statistics.median(python):11.1f} {statistics.median(rust):11.1f} {ratio:7.3f}")


if __name__ == "__main__":
    main()
