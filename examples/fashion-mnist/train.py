"""Trains the demo's network on Fashion-MNIST and writes everything the demo needs.

    pip install torch numpy onnx onnxruntime
    python train.py --data FOLDER [--epochs 10] [--out .]

FOLDER holds the four idx files of Fashion-MNIST (Debian: package dataset-fashion-mnist). Writes

    fashion-mnist.onnx   the network: float32, opset 17, input `image` (N, 1, 28, 28) of values
                         0..1, output `scores` (N, 10), batch norms as nodes of their own
    test.npz             the 10,000 test images, u8, with labels
    calibration.npz      512 training images, 51 or 52 a class, drawn with the seed
    golden.npz, golden-scores.npy
                         the first 32 test images, and ONNX Runtime's scores for them

The weights are those of the last epoch. The test images are read once, at the end, to print the
accuracy; nothing is chosen by them. With equal versions and threads the result repeats.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SEED = 1
CALIBRATION = 512


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Reads an idx file of bytes, gzipped or not."""
    path = folder / name
    data = path.read_bytes() if path.exists() else gzip.open(f"{path}.gz").read()
    dims = data[3]
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


class Block(nn.Module):
    """Two 3x3 convolutions with a residual path; a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        x = x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))
        return torch.relu(y + x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.blocks = nn.ModuleList([Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)])
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirrors half of the images and shifts all by up to two pixels."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    return nn.functional.pad(images, (2, 2, 2, 2))[:, :, dy : dy + 28, dx : dx + 28]


def train(images: np.ndarray, labels: np.ndarray, epochs: int, batch: int = 128) -> Network:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    x = torch.from_numpy(images.copy()).float()[:, None] / 255
    y = torch.from_numpy(labels.copy()).long()
    network = Network()
    steps = len(x) // batch
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps * epochs)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            loss = nn.functional.cross_entropy(network(augment(x[chosen], generator)), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: training loss {total / steps:.4f}", flush=True)
    return network.eval()


class Writer:
    """Collects ONNX nodes and weights. Written out by hand so that the file does not depend on an
    exporter's version."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def weight(self, name: str, value) -> str:
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind: str, name: str, inputs: list, output: str | None = None, **attributes) -> str:
        output = output or f"{name}_out"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def conv_norm(self, x: str, name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> str:
        x = self.node(
            "Conv", f"{name}_conv", [x, self.weight(f"{name}.weight", conv.weight)],
            kernel_shape=list(conv.kernel_size), strides=list(conv.stride),
            pads=list(conv.padding) * 2,
        )
        parts = dict(scale=norm.weight, bias=norm.bias, mean=norm.running_mean, var=norm.running_var)
        inputs = [self.weight(f"{name}.norm.{key}", value) for key, value in parts.items()]
        return self.node("BatchNormalization", f"{name}_norm", [x, *inputs], epsilon=norm.eps)


def to_onnx(network: Network) -> onnx.ModelProto:
    w = Writer()
    x = w.conv_norm("image", "stem", network.stem, network.stem_norm)
    x = w.node("Relu", "stem_relu", [x])
    for i, block in enumerate(network.blocks, 1):
        y = w.conv_norm(x, f"block{i}_1", block.conv1, block.norm1)
        y = w.node("Relu", f"block{i}_1_relu", [y])
        y = w.conv_norm(y, f"block{i}_2", block.conv2, block.norm2)
        if block.shortcut is not None:
            x = w.conv_norm(x, f"block{i}_shortcut", block.shortcut, block.shortcut_norm)
        x = w.node("Add", f"block{i}_add", [y, x])
        x = w.node("Relu", f"block{i}_relu", [x])
    x = w.node("GlobalAveragePool", "pool", [x])
    x = w.node("Flatten", "flatten", [x], axis=1)
    head = [w.weight("head.weight", network.head.weight), w.weight("head.bias", network.head.bias)]
    w.node("Gemm", "head", [x, *head], "scores", transB=1)
    graph = helper.make_graph(
        w.nodes,
        "fashion-mnist",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        w.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)

    images = read_idx(args.data, "train-images-idx3-ubyte")
    labels = read_idx(args.data, "train-labels-idx1-ubyte")
    rng = np.random.default_rng(SEED)
    per_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(10)]
    chosen = np.concatenate([p[: CALIBRATION // 10 + (c < CALIBRATION % 10)] for c, p in enumerate(per_class)])
    chosen = rng.permutation(chosen)
    np.savez_compressed(args.out / "calibration.npz", x=images[chosen][:, None], y=labels[chosen])

    test_images = read_idx(args.data, "t10k-images-idx3-ubyte")[:, None]
    test_labels = read_idx(args.data, "t10k-labels-idx1-ubyte")
    np.savez_compressed(args.out / "test.npz", x=test_images, y=test_labels)

    network = train(images, labels, args.epochs)
    path = args.out / "fashion-mnist.onnx"
    onnx.save(to_onnx(network), path)

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = test_images.astype(np.float32) / 255
    scores = np.concatenate([session.run(None, {"image": x[i : i + 500]})[0] for i in range(0, len(x), 500)])
    np.savez_compressed(args.out / "golden.npz", x=test_images[:32], y=test_labels[:32])
    np.save(args.out / "golden-scores.npy", scores[:32])
    correct = int((scores.argmax(1) == test_labels).sum())
    parameters = sum(p.numel() for p in network.parameters())
    print(f"test accuracy {correct}/{len(x)}, {parameters} parameters")


if __name__ == "__main__":
    main()
