"""The demo's model and data, shortened, and one run on them."""

import socket
import subprocess
import sys
import time
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


@pytest.fixture
def bucket():
    """A bucket of an S3 server on this machine, and how fsspec reaches it."""
    for needed in ("fsspec", "s3fs", "moto"):
        pytest.importorskip(needed, reason=f"SKIPPED: {needed} is not installed")
    import fsspec

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", port], **quiet)
    try:
        address = f"http://127.0.0.1:{port}"
        options = {"key": "key", "secret": "secret", "client_kwargs": {"endpoint_url": address}}
        store = fsspec.filesystem("s3", **options)
        until = time.monotonic() + 60
        while True:
            try:
                store.mkdir("bucket")
                break
            except OSError:
                assert time.monotonic() < until, "the server does not start"
                time.sleep(0.1)
        yield store, options
    finally:
        server.kill()
        server.wait()
