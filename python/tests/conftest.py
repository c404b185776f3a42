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
    """The first 1,500 test images and labels, which characterize; and 500 more."""
    with np.load(EXAMPLE / "test.npz") as file:
        x, y = file["x"][:2000], file["y"][:2000]
    return x[:1500], y[:1500], x[1500:], y[1500:]


@pytest.fixture(scope="session")
def options(calibration):
    return {
        "accelerator": "envision-28nm",
        "max_drop": 0.01,
        "calibration": calibration,
        "calibration_samples": 64,
        "search_share": 0.5,
        "certification_share": 0.1,
        "scale": 1 / 255,
        "points": ["w2a2-f8l8", "w4a4", "w8a8"],
    }


@pytest.fixture(scope="session")
def run(model, data, options, tmp_path_factory):
    x, y, _, _ = data
    return bg.characterize(model, x, y, out=tmp_path_factory.mktemp("run"), **options)
