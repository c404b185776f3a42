"""Compares float scores with ONNX Runtime's on the real models and data beside the checkout.

    pip install numpy onnxruntime
    python crates/bitgear/tests/compare_onnxruntime.py [--samples 200]

Run by hand; prints the largest difference relative to the largest score, and the classes that differ.
"""

import argparse
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared"
IMAGENET = ("0.00392156862745098", "0.485,0.456,0.406", "0.229,0.224,0.225")
MODELS = {
    "cifar10_resnet20": ("cifar10_test_5000", *IMAGENET),
    "cifar10_resnet32": ("cifar10_test_5000", *IMAGENET),
    "mlperftiny_ic_resnet8": ("cifar10_test_5000", "1", "0", "1"),
    "mlperftiny_kws_dscnn": ("speech_commands_600", "1", "83", "1.7102676153182983"),
    "mlperftiny_vww_mobilenetv1_025_96": (None, "0.00392156862745098", "0", "1"),
    "mnist_cnn_zoo": ("mnist_test_5000", "0.00392156862745098", "0", "1"),
    "mnist_vit_d64x6": ("mnist_test_5000", "0.00392156862745098", "0.1307", "0.3081"),
    "imagenet_efficientnet_lite0": ("imagenet_sample_a_250", "1", "127", "128"),
}


def column(text: str) -> np.ndarray:
    """Numbers as a column that broadcasts over channels."""
    return np.array([float(v) for v in text.split(",")], np.float32)[None, :, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200)
    args = parser.parse_args()
    build = ["cargo", "build", "--release", "-p", "bitgear", "--example", "scores"]
    subprocess.run(build, cwd=ROOT, check=True)
    for name, (data, scale, mean, std) in MODELS.items():
        model = SHARED / "models" / f"{name}.onnx"
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0]
        if data is None:
            path = ROOT / "target" / "noise.npz"
            shape = (args.samples, *feed.shape[1:])
            np.savez(path, x=np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
        else:
            path = SHARED / "datasets" / f"{data}.npz"
        x = np.load(path)["x"][: args.samples].astype(np.float32)
        x = (x * np.float32(scale) - column(mean)) / column(std)
        batches = [session.run(None, {feed.name: x[i : i + 50]})[0] for i in range(0, len(x), 50)]
        expected = np.concatenate(batches).reshape(len(x), -1)
        command = ["target/release/examples/scores", model, path, str(args.samples), scale, mean, std]
        raw = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        got = np.frombuffer(raw, "<f4").reshape(len(x), -1)
        if abs(expected.sum(1) - 1).max() < 1e-4 and expected.min() >= 0:
            print(f"{name}: the model ends in a softmax; comparing after it")
            got = np.exp(got - got.max(1, keepdims=True))
            got /= got.sum(1, keepdims=True)
        difference = np.abs(got - expected).max() / np.abs(expected).max()
        classes = int((got.argmax(1) != expected.argmax(1)).sum())
        print(f"{name}: largest relative difference {difference:.1e}, {classes} of {len(x)} classes differ")


if __name__ == "__main__":
    main()
