"""The demo's model and data, shortened, and one run on them."""

from pathlib import Path

import bitgear as bg
import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/fashion-mnist"


@pytest.fixture(scope="session")
def model():
    return EXAMPLE / "fashion-mnist.onnx"


@pytest.fixture(scope="session")
def calibration():
    return np.load(EXAMPLE / "calibration.npz")["x"]


@pytest.fixture(scope="session")
def data():
    """The first 1,000 test images and labels, which characterize; and 500 more."""
    with np.load(EXAMPLE / "test.npz") as file:
        x, y = file["x"][:1500], file["y"][:1500]
    return x[:1000], y[:1000], x[1000:], y[1000:]


@pytest.fixture(scope="session")
def options(calibration):
    return {
        "accelerator": "envision-28nm",
        "max_drop": 0.01,
        "calibration": calibration,
        "calibration_samples": 32,
        "search_share": 0.5,
        "certification_share": 0.1,
        "scale": 1 / 255,
        "points": ["w4a4", "w8a8"],
    }


@pytest.fixture(scope="session")
def quick(data, options):
    """Arguments of a run that takes a second or two."""
    return {**options, "x": data[0][:400], "y": data[1][:400], "points": ["w8a8"]}


@pytest.fixture(scope="session")
def run(model, data, options, tmp_path_factory):
    x, y, _, _ = data
    return bg.characterize(model, x, y, out=tmp_path_factory.mktemp("run"), **options)
