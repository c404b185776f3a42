"""The examples run as they stand."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

nbclient = pytest.importorskip("nbclient", reason="SKIPPED: nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="SKIPPED: nbformat is not installed")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "examples/notebooks"


@pytest.mark.parametrize("name", ["cpu-speed", "my-accelerator"])
def test_a_notebook_runs(name):
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "outputs are stripped"
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": NOTEBOOKS}}).execute()
    assert any(
        "text/html" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", [])
    )


def test_the_page_about_python_runs(model, data, calibration, tmp_path, monkeypatch):
    pytest.importorskip("polars", reason="SKIPPED: polars is not installed")
    page = (ROOT / "docs/python.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    # The one about Ray needs a bucket; `test_ray.py` has its own.
    blocks = [block for block in blocks if "s3://" not in block]
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(model, "model.onnx")
    x, y, x_new, _ = data
    noise = np.random.default_rng(1).integers(0, 256, x_new.shape, np.uint8)
    names = {"x": x, "y": y, "x_train": calibration, "x_new": x_new, "stream": [x_new, noise, noise]}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
    assert names["labels"].shape == (500,) and names["monitor"].finding["drifted"]
    assert (tmp_path / "run/report.html").is_file()
