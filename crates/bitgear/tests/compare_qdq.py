"""Compares integer networks with ONNX Runtime, in two ways, on the real models and data beside the
checkout.

    pip install numpy onnx onnxruntime
    python crates/bitgear/tests/compare_qdq.py [--samples 500]

1. The 8-bit point, written as ONNX QDQ, runs in ONNX Runtime without graph optimizations, so that
   everything between quantizers is float; scores and classes are compared with the integer engine's.
2. ONNX Runtime's own per-channel quantizer works on the same model and calibration samples; its
   accuracy and ours are compared with the float network's, on all samples that did not calibrate.
Run by hand.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from compare_onnxruntime import IMAGENET, ROOT, SHARED, column

CALIBRATION = 512
MODELS = {
    "cifar10_resnet20": ("cifar10_calibration_1024", "cifar10_test_5000", *IMAGENET),
    "cifar10_resnet32": ("cifar10_calibration_1024", "cifar10_test_5000", *IMAGENET),
    "mlperftiny_ic_resnet8": ("cifar10_calibration_1024", "cifar10_test_5000", "1", "0", "1"),
    "mlperftiny_kws_dscnn": (None, "speech_commands_600", "1", "83", "1.7102676153182983"),
    "mnist_cnn_zoo": (None, "mnist_test_5000", "0.00392156862745098", "0", "1"),
    "imagenet_efficientnet_lite0": ("imagenet_sample_a_250", "imagenet_sample_b_250", "1", "127", "128"),
}


class Reader(CalibrationDataReader):
    def __init__(self, name: str, x: np.ndarray):
        self.batches = iter([{name: x[i : i + 1]} for i in range(len(x))])

    def get_next(self):
        return next(self.batches, None)


def run(path: Path, x: np.ndarray, optimize: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    scores = [session.run(None, {name: x[i : i + 50]})[0] for i in range(0, len(x), 50)]
    return np.concatenate(scores).reshape(len(x), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args()
    build = ["cargo", "build", "--release", "-p", "bitgear", "--example", "qdq"]
    subprocess.run(build, cwd=ROOT, check=True)
    for name, (calibration, data, scale, mean, std) in MODELS.items():
        model = SHARED / "models" / f"{name}.onnx"
        data_path = SHARED / "datasets" / f"{data}.npz"
        calibration_path = SHARED / "datasets" / f"{calibration}.npz" if calibration else data_path
        prepare = lambda x: (x.astype(np.float32) * np.float32(scale) - column(mean)) / column(std)
        samples = CALIBRATION if name != "mlperftiny_kws_dscnn" else 120
        first = 0 if calibration else samples
        x, y = (np.load(data_path)[key] for key in "xy")
        x, y = prepare(x), y.astype(np.int64)
        calibrating = prepare(np.load(calibration_path)["x"][:samples])
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "w8a8"
            command = [ROOT / "target/release/examples/qdq", model, calibration_path, str(samples), data_path,
                       "w8a8", scale, mean, std, out]
            subprocess.run(command, check=True)
            onnx.checker.check_model(onnx.load(f"{out}.onnx"), full_check=True)
            ours = np.fromfile(f"{out}.f32", "<f4").reshape(len(x), -1)
            theirs = run(Path(f"{out}.onnx"), x[: args.samples], optimize=False)
            apart = np.abs(ours[: args.samples] - theirs).max(1) / np.abs(theirs).max()
            differ = int((ours[: args.samples].argmax(1) != theirs.argmax(1)).sum())
            print(f"{name}: exported w8a8 in ONNX Runtime: relative score difference median {np.median(apart):.1e}, "
                  f"largest {apart.max():.1e}; {differ} of {len(theirs)} classes differ", flush=True)

            plain, quantized = Path(folder) / "plain.onnx", Path(folder) / "quantized.onnx"
            quant_pre_process(str(model), str(plain))
            input_name = onnxruntime.InferenceSession(str(plain)).get_inputs()[0].name
            quantize_static(str(plain), str(quantized), Reader(input_name, calibrating), QuantFormat.QDQ,
                            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
            accuracy = lambda scores: 100 * float((scores[first:].argmax(1) == y[first:]).mean())
            reference = accuracy(run(model, x, optimize=True))
            # Without optimizations: its saturating kernels would add an error of their own.
            print(f"{name}: {len(x) - first} samples: float {reference:.2f} %, ours w8a8 {accuracy(ours):.2f} %, "
                  f"ONNX Runtime int8 {accuracy(run(quantized, x, optimize=False)):.2f} %", flush=True)


if __name__ == "__main__":
    main()
