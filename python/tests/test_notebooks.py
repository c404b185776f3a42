"""The examples run as they stand."""

from pathlib import Path

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
