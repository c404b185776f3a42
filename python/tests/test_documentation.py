"""Every Python block of the README and the book runs as it stands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import bitgear as bg
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CONVERT = "docs/guides/convert.md"
PAGES = ["README.md", "python/README.md", "docs/python.md", CONVERT]


def blocks(page, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def execute(page, code, names):
    exec(compile(code, page, "exec"), names)
    return names


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """A folder to work in, with the demo's model in it."""
    shutil.copyfile(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_page_with_python_is_forgotten():
    pages = [ROOT / "README.md", ROOT / "python/README.md", *(ROOT / "docs").rglob("*.md")]
    found = {page.relative_to(ROOT).as_posix() for page in pages}
    assert {page for page in found if blocks(page)} == set(PAGES)


@pytest.mark.parametrize("page", ["README.md", "python/README.md"])
def test_a_readme_runs(page, data, here):
    (block,) = blocks(page)
    x, y = data[0][:400], data[1][:400]
    names = execute(page, block, {"x": x, "y": y})
    assert names["labels"].shape == names["energies"].shape == (400,)
    assert np.mean(names["labels"] == y) > 0.8, "a README's preprocessing is right"


def test_the_page_about_python_runs(data, calibration, here):
    pytest.importorskip("polars", reason="SKIPPED: polars is not installed")
    page = "docs/python.md"
    x, y, x_new, _ = data
    noise = np.random.default_rng(1).integers(0, 256, x_new.shape, np.uint8)
    names = {"x": x, "y": y, "x_train": calibration[:64], "x_new": x_new, "stream": [x_new, noise, noise]}
    here_blocks = [block for block in blocks(page) if "s3://" not in block]
    for block in here_blocks:
        execute(page, block, names)
    assert len(here_blocks) == 3
    assert names["labels"].shape == (500,) and names["monitor"].finding["drifted"]
    assert (here / "run/report.html").is_file()


def test_the_part_about_ray_runs(bucket, data, calibration, here, monkeypatch):
    ray = pytest.importorskip("ray", reason="SKIPPED: ray is not installed")
    page = "docs/python.md"
    (block,) = (block for block in blocks(page) if "s3://" in block)
    store, options = bucket
    # Where both Ray and fsspec look for an address and keys.
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["client_kwargs"]["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # As many processors as the page asks for, in Ray's books.
    ray.init(num_cpus=24, include_dashboard=False, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        x, y, x_train = data[0][:400], data[1][:400], calibration[:64]
        bg.ray.dataset(x, y, shards=4).write_parquet("s3://bucket/images")
        found = execute(page, "import bitgear as bg\n" + block, {"x_train": x_train})["run"]
    finally:
        ray.shutdown()
    assert store.ls("bucket/fragments")
    wanted = {"scale": 1 / 255, "points": ["w4a4", "w8a8"], "accelerator": "envision-28nm"}
    alone = bg.characterize("model.onnx", x, y, calibration=x_train, **wanted)
    assert found.policy == alone.policy


def _torch(torch):
    layers = torch.nn
    torch.manual_seed(1)
    model = layers.Sequential(
        layers.Conv2d(3, 8, 3, padding=1),
        layers.BatchNorm2d(8),
        layers.ReLU(),
        layers.AdaptiveAvgPool2d(1),
        layers.Flatten(),
        layers.Linear(8, 10),
    )
    model(torch.randn(64, 3, 32, 32))
    return model, lambda x: model(torch.from_numpy(x)).detach().numpy()


def _keras(keras):
    # As most write it, and the harder one to convert.
    layers = keras.layers
    keras.utils.set_random_seed(1)
    convolution = layers.Conv2D(8, 3, activation="relu")
    model = keras.Sequential([keras.Input((32, 32, 3)), convolution, layers.Flatten(), layers.Dense(10)])
    return model, lambda x: model.predict(x.transpose(0, 2, 3, 1), verbose=0)


def agree(scores, x, data):
    """The converted network answers as the one that it came from; `data` is `x` as the file takes it."""
    y = scores(x).argmax(axis=1)
    options = {"points": ["w8a8"], "calibration_samples": 32, "calibration": data[:32]}
    run = bg.characterize("model.onnx", data, y, accelerator="envision-28nm", **options)
    assert run.summary["reference"]["accuracy"] == 1


@pytest.mark.parametrize("framework", ["torch", "keras", "tflite"])
def test_the_guide_to_onnx_converts(framework, tmp_path, monkeypatch):
    needs = {"torch": ["torch"], "keras": ["tf2onnx", "keras"], "tflite": ["tf2onnx", "tensorflow"]}
    for needed in needs[framework]:
        reason = f"SKIPPED: the guide's {framework} part needs {needed}, which is not installed"
        package = pytest.importorskip(needed, reason=reason)
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1).normal(size=(400, 3, 32, 32)).astype(np.float32)
    torch_block, keras_block = blocks(CONVERT)
    if framework == "torch":
        model, scores = _torch(package)
        execute(CONVERT, torch_block, {"model": model})
        agree(scores, x, x)
        return
    import keras

    model, scores = _keras(keras)
    if framework == "keras":
        execute(CONVERT, keras_block, {"model": model})
        agree(scores, x, x)
        return
    (tmp_path / "model.tflite").write_bytes(package.lite.TFLiteConverter.from_keras_model(model).convert())
    (line,) = blocks(CONVERT, "console")[0].splitlines()
    assert line.startswith("$ python -m ")
    subprocess.run([sys.executable, *line.split()[2:]], check=True)
    agree(scores, x, x.transpose(0, 2, 3, 1))
