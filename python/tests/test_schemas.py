"""The JSON Schemas of the book describe the files that there are."""

import json
from pathlib import Path

import jsonschema
import pytest

tomllib = pytest.importorskip("tomllib", reason="SKIPPED: Python 3.10 has no tomllib")

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "docs/reference/schema"


def validator(name):
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


@pytest.mark.parametrize("profile", sorted((ROOT / "accelerators").glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_profile_keeps_its_schema(profile):
    table = tomllib.loads(profile.read_text(encoding="utf-8"))
    assert [error.message for error in validator("accelerator").iter_errors(table)] == []


def test_a_profile_with_an_unknown_key_or_grade_does_not():
    table = tomllib.loads((ROOT / "accelerators/envision-28nm.toml").read_text(encoding="utf-8"))
    table["mode"][0]["volts"] = 1.0
    table["matching"]["grade"] = "A"
    errors = list(validator("accelerator").iter_errors(table))
    assert {tuple(error.path)[:1] for error in errors} == {("mode",), ("matching",)}


def test_a_run_keeps_the_schemas_of_its_files(run, tmp_path):
    run.save(tmp_path / "run")
    for name in ["summary", "policy", "splits"]:
        file = json.loads((tmp_path / "run" / f"{name}.json").read_text(encoding="utf-8"))
        assert [error.message for error in validator(name).iter_errors(file)] == []


def test_the_demos_task_keeps_its_schema():
    task = tomllib.loads((ROOT / "examples/fashion-mnist/bitgear.toml").read_text(encoding="utf-8"))
    assert [error.message for error in validator("task").iter_errors(task)] == []
