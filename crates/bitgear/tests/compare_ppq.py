"""Compares points of few bits with an independent post-training quantizer, ESP-PPQ, on the real models
and data beside the checkout.

    pip install numpy onnx onnxruntime torch esp-ppq
    python crates/bitgear/tests/compare_ppq.py [--test 2000] [--models NAME…] [--settings NAME…]

Both get the same calibration samples, without labels, and are tested on the same other ones; bitgear in its
integer engine, ESP-PPQ in its simulating executor. There, weights have one symmetric scale per output
channel, and the inputs of convolutions and matrix products an asymmetric one; everything else stays float,
residual paths included. Each setting of ESP-PPQ is printed; the table in the docs takes the best by test
accuracy, which favours it. Run by hand; ESP-PPQ takes minutes for each ResNet and setting.
"""

import argparse
import contextlib
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from esp_ppq import (BaseQuantizer, QuantizationPolicy, QuantizationProperty, QuantizationSettingFactory,
                     QuantizationStates, RoundingPolicy, TargetPlatform, TorchExecutor)
from esp_ppq.api import load_onnx_graph

from compare_onnxruntime import ROOT, SHARED, column
from compare_qdq import CALIBRATION, MODELS, run

# The samples at the front of the data that are not tested, and how many of them calibrate.
FRONT = {"mlperftiny_kws_dscnn": (200, 160), "mnist_cnn_zoo": (640, CALIBRATION)}
POINTS = {
    "mnist_cnn_zoo": ["w8a8", "w4a4-f8l8", "w3a3-f8l8", "w2a2-f8l8"],
    "mlperftiny_kws_dscnn": ["w8a8", "w4a4-f8l8", "w3a3-f8l8"],
    "mlperftiny_ic_resnet8": ["w8a8", "w4a4-f8l8", "w3a3-f8l8", "w2a2-f8l8"],
    "cifar10_resnet20": ["w8a8", "w4a4-f8l8", "w3a3-f8l8", "w2a2-f8l8"],
}
# Calibration of activations, equalization, bias correction, and the finetuning of weights and scales (LSQ)
# towards the float results of each block: the largest depth of a block.
SETTINGS = {
    "default": (None, False, False, None),
    "equalized+bias": ("mse", True, True, None),
    "lsq": ("mse", False, False, 4),
    "equalized+lsq": ("mse", True, False, 4),
    "lsq-whole": ("mse", False, False, 1000),
    "equalized+lsq-whole": ("mse", True, False, 1000),
}
BATCH = 16
ASYMMETRIC = QuantizationPolicy(QuantizationProperty.ASYMMETRICAL + QuantizationProperty.LINEAR
                                + QuantizationProperty.PER_TENSOR)
PER_CHANNEL = QuantizationPolicy(QuantizationProperty.SYMMETRICAL + QuantizationProperty.LINEAR
                                 + QuantizationProperty.PER_CHANNEL)


class Quantizer(BaseQuantizer):
    """Quantizes inputs and weights of layers at a point such as `w3a3-f8l8`."""

    quant_operation_types = {"Conv", "Gemm"}
    target_platform = TargetPlatform.EXTENSION

    def __init__(self, graph, point: str):
        super().__init__(graph, verbose=False)
        weights, activations = map(int, re.match(r"w(\d+)a(\d+)", point).groups())
        layers = [op.name for op in graph.topological_sort() if op.type in self.quant_operation_types]
        self.bits = dict.fromkeys(layers, (weights, activations))
        if point.endswith("-f8l8"):
            self.bits[layers[0]] = self.bits[layers[-1]] = (8, 8)
        for operation in graph.operations.values():
            operation.platform = TargetPlatform.EXTENSION if operation.name in layers else TargetPlatform.FP32

    def init_quantize_config(self, operation):
        weights, activations = self.bits[operation.name]
        config = self.create_default_quant_config(
            operation, activations, 0, 2**activations - 1, "percentile", ASYMMETRIC, RoundingPolicy.ROUND_HALF_EVEN)
        weight = config.input_quantization_config[1]
        weight.policy, weight.observer_algorithm = PER_CHANNEL, "minmax"
        weight.num_of_bits, weight.quant_min, weight.quant_max = weights, -(2 ** (weights - 1)), 2 ** (weights - 1) - 1
        # A matrix product without `transB` has its output channels in the second axis.
        weight.channel_axis = int(operation.type == "Gemm" and not operation.attributes.get("transB", 0))
        for untouched in config.input_quantization_config[2:] + config.output_quantization_config:
            untouched.state = QuantizationStates.FP32
        return config


def setting_of(name: str, steps: int, rate: float):
    algorithm, equalize, correct, depth = SETTINGS[name]
    setting = QuantizationSettingFactory.default_setting()
    setting.quantize_activation_setting.calib_algorithm = algorithm
    setting.equalization = equalize
    setting.bias_correct = correct
    setting.bias_correct_setting.collecting_device = "cpu"
    if depth is not None:
        setting.lsq_optimization = True
        setting.lsq_optimization_setting.lr = rate
        setting.lsq_optimization_setting.block_size = depth
        setting.lsq_optimization_setting.steps = steps
        setting.lsq_optimization_setting.collecting_device = "cpu"
    return setting


def scores(executor, x: np.ndarray) -> np.ndarray:
    batches = [executor.forward(torch.from_numpy(x[i : i + 50]))[0].numpy() for i in range(0, len(x), 50)]
    return np.concatenate(batches).reshape(len(x), -1)


def quantized(model: Path, point: str, setting, samples: np.ndarray):
    """Executor of the quantized model."""
    torch.manual_seed(0)
    graph = load_onnx_graph(str(model))
    quantizer = Quantizer(graph, point)
    executor = TorchExecutor(graph, device="cpu")
    batches = [torch.from_numpy(samples[i : i + BATCH]) for i in range(0, len(samples), BATCH)]
    quantizer.quantize(inputs=batches[0], calib_dataloader=batches, executor=executor, setting=setting,
                       calib_steps=len(batches), collate_fn=None)
    return executor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", type=int, default=2000, help="at most so many samples are tested")
    parser.add_argument("--steps", type=int, default=500, help="of finetuning, for each block")
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning in finetuning")
    parser.add_argument("--models", nargs="+", choices=POINTS, default=list(POINTS))
    parser.add_argument("--points", nargs="+", help="all of the model's, unless given")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    build = ["cargo", "build", "--release", "-p", "bitgear", "--example", "accuracy"]
    subprocess.run(build, cwd=ROOT, check=True)
    for name in args.models:
        calibration, data, scale, mean, std = MODELS[name]
        model = SHARED / "models" / f"{name}.onnx"
        front, samples = FRONT.get(name, (0, CALIBRATION))
        tested, calibrating = (np.load(SHARED / "datasets" / f"{file}.npz") for file in (data, calibration or data))
        tested = {key: tested[key][front:][: args.test] for key in "xy"}
        calibrating = {key: calibrating[key][:samples] for key in "xy"}
        points = args.points or POINTS[name]
        with tempfile.TemporaryDirectory() as folder:
            paths = Path(folder) / "tested.npz", Path(folder) / "calibrating.npz"
            np.savez(paths[0], **tested)
            np.savez(paths[1], **calibrating)
            command = [ROOT / "target/release/examples/accuracy", model, *paths, str(samples), "1", scale, mean, std]
            print(f"{name}, bitgear:", flush=True)
            subprocess.run([*command, *points], check=True)

        prepare = lambda x: (x.astype(np.float32) * np.float32(scale) - column(mean)) / column(std)
        x, y, samples = prepare(tested["x"]), tested["y"].astype(np.int64), prepare(calibrating["x"])
        accuracy = lambda scores: 100 * float((scores.argmax(1) == y).mean())
        exact = TorchExecutor(load_onnx_graph(str(model)), device="cpu")
        print(f"{name}: {len(x)} samples: float {accuracy(run(model, x, optimize=True)):.2f} %, "
              f"in ESP-PPQ {accuracy(scores(exact, x)):.2f} %", flush=True)
        for point in points:
            for setting in args.settings:
                start = time.monotonic()
                # Its passes report their progress at length.
                with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
                    executor = quantized(model, point, setting_of(setting, args.steps, args.rate), samples)
                print(f"{name} {point}, ESP-PPQ {setting}: {accuracy(scores(executor, x)):.2f} %, "
                      f"in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
