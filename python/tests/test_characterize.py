"""Finding a policy."""

import dataclasses
import gc
import importlib
import json
import os
import signal
import sys

import bitgear as bg
import numpy as np
import pytest


def test_a_run_has_summary_policy_and_trace(run, data):
    x, y, _, _ = data
    summary, policy = run.summary, run.policy
    assert summary["policy"]["accuracy"] > 0.8
    assert summary["samples"]["test"] == int((run.trace.split == "test").sum())
    assert policy["stages"], "expected more than one stage"
    # The summary's accuracy, from the trace of a static point.
    trace = run.trace
    test = trace.split == "test"
    right = trace.block("w4a4").predicted[test] == trace.label[test]
    static = {p["point"]: p["accuracy"] for p in summary["static"]}
    assert static["w4a4"] == pytest.approx(right.mean())
    assert np.array_equal(trace.label, y[trace.sample])


def test_the_folder_lasts_as_long_as_the_result_and_the_form_of_the_data_does_not_matter(
    model, quick, tmp_path
):
    told = []
    run = bg.characterize(model, **quick, progress=lambda *step: told.append(step))
    assert ("float", 400, 400) in told and ("w8a8", 400, 400) in told
    assert all(done <= total or total == 0 for _, done, total in told)
    folder = run.path
    saved = run.save(tmp_path / "saved")
    assert bg.load(saved.path).summary == run.summary
    assert folder.is_dir()
    del run
    gc.collect()
    assert not folder.exists()
    assert len(saved.runner()(quick["x"][:3]).labels) == 3

    class Proto:
        def SerializeToString(self):
            return model.read_bytes()

    np.savez_compressed(tmp_path / "data.npz", x=quick["x"], y=quick["y"].astype(np.int64))
    arguments = {**quick, "x": tmp_path / "data.npz", "y": None, "threads": 1}
    again = bg.characterize(Proto(), out=tmp_path / "out", **arguments)
    for name in ["policy.json", "splits.json", "trace.parquet", "model.bitgear"]:
        assert (again.path / name).read_bytes() == (saved.path / name).read_bytes(), name


def test_ctrl_c_ends_a_run_which_then_continues(model, quick, tmp_path):
    def interrupt(step, done, total):
        if step == "w8a8" and done == total:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        bg.characterize(model, out=tmp_path, progress=interrupt, **quick)
    assert not (tmp_path / "policy.json").exists()
    assert list((tmp_path / "trace-parts").glob("w8a8-as-is-*"))
    steps = []
    bg.characterize(model, out=tmp_path, progress=lambda step, *_: steps.append(step), **quick)
    # Of what was traced the run goes on.
    assert "w16a16-plain" in steps and (tmp_path / "policy.json").exists()


def test_an_error_of_the_callback_ends_the_run(model, quick):
    def broken(step, done, total):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        bg.characterize(model, progress=broken, **quick)


def test_trace_columns_make_a_data_frame(run):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(run.trace.columns())
    assert len(frame) == len(run.trace.sample) * len(run.trace.blocks)
    test = frame[(frame.split == "test") & (frame.point == "w8a8")]
    accuracy = {p["point"]: p["accuracy"] for p in run.summary["static"]}["w8a8"]
    assert (test.predicted == test.label).mean() == pytest.approx(accuracy)


def test_a_trace_is_a_stream_of_arrow(run):
    polars = pytest.importorskip("polars")
    trace = run.trace
    frame = polars.DataFrame(trace)
    assert frame.columns == polars.read_parquet(run.path / "trace.parquet").columns
    for name, column in trace.columns().items():
        assert frame[name].to_list() == column.tolist(), name
    block = frame.filter(polars.col("point") == "w4a4")
    assert np.array_equal(np.array(block["scores"].to_list()), trace.block("w4a4").scores)
    with pytest.raises(bg.Error, match="the trace has no blocks"):
        polars.DataFrame(dataclasses.replace(trace, blocks=()))


def test_columns_of_a_block_are_the_memory_of_the_trace(run):
    polars = pytest.importorskip("polars")
    block = run.trace.block("w4a4")
    frame = polars.DataFrame({"margin": block.margin})
    assert frame["margin"].to_list() == block.margin.tolist()
    pandas = pytest.importorskip("pandas")
    assert np.shares_memory(pandas.Series(block.margin, copy=False).to_numpy(), block.margin)


def test_a_run_shows_itself(run):
    page = run._repr_html_()
    assert page.count("<tr>") == 5 and "best static uniform" in page
    saved = run.summary["savings"]["vs_best_static"]
    assert f"{saved:.1%} saved against the best static point" in page
    stages = run.runner()._repr_html_()
    assert stages.count("<tr>") == 1 + len(run.runner().points) and "always" in stages
    assert "fashion-mnist on envision-28nm" in repr(run)


def test_a_run_is_plotted(run):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = run.plot()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"policy", "policies for other targets", "static, uniform"} <= set(labels)


def test_other_accelerators_are_compared_without_the_model(run, model):
    summaries = bg.compare(run, model, ["envision-28nm", "bitfusion-45nm"])
    assert list(summaries) == ["envision-28nm", "bitfusion-45nm"]
    assert summaries["bitfusion-45nm"]["accelerator"] == "bitfusion-45nm"
    assert set(bg.compare(run, model)) == set(bg.accelerators())


def test_a_policy_is_certified_on_new_samples_only(run, model, data):
    x, y, new_x, new_y = data
    found = bg.certify(run, model, new_x, new_y, guarantee=0.2)
    assert found["flips"]["samples"] == 500 and found["proved"] is True
    assert found["drop_upper_bound"] > found["accuracy_drop"]
    with pytest.raises(bg.Error, match="these samples chose the policy"):
        bg.certify(run, model, x, y)


def test_figures_are_of_the_class_mix_of_deployment(model, quick):
    shares = [3.0, *[1.0] * 8, 0.0]
    run = bg.characterize(model, **quick, class_mix=shares)
    trace = run.trace
    assert trace.class_mix == tuple(shares) and trace.label.max() == 8
    test = trace.split == "test"
    right = trace.block("float").predicted[test] == trace.label[test]
    means = [right[trace.label[test] == label].mean() for label in range(9)]
    accuracy = np.average(means, weights=shares[:9])
    assert run.summary["reference"]["accuracy"] == pytest.approx(accuracy, abs=1e-5)
    assert run.summary["class_mix"]["test"] < test.sum()


def test_this_cpu_is_measured_as_a_profile(model, quick, tmp_path):
    profile = tmp_path / "host.toml"
    profile.write_text(bg.measure(model, quick["x"][:16], rounds=3, scale=1 / 255))
    run = bg.characterize(model, **{**quick, "accelerator": profile})
    assert run.summary["cost_unit"] == "us"


def test_profiles_are_listed():
    profiles = bg.accelerators()
    assert profiles["envision-28nm"].evidence == "silicon"
    assert 'id = "envision-28nm"' in profiles["envision-28nm"].text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((20, 1, 28, 28), np.complex64)}, "element type `complex64` is not supported"),
        ({"x": np.zeros((1000, 28, 28), np.uint8)}, r"\[1, 28, 28\], got \[28, 28\]\nhint: add the axis"),
        ({"x": np.zeros((1000, 28, 28, 1), np.uint8)}, r"\[28, 28, 1\]\nhint: .*transpose\(0, 3, 1, 2\)"),
        ({"x": np.full((1000, 1, 28, 28), np.nan, np.float32)}, "sample 0 .* not finite"),
        ({"x": np.zeros((0, 1, 28, 28), np.uint8)}, "there are no samples"),
        ({"x": np.uint8(3), "y": None}, r"input shape \[1, 28, 28\], got \[\]"),
        ({"y": np.zeros(7, np.int64)}, "expected 1000 labels, one per sample, got 7"),
        ({"y": np.zeros(1000)}, "expected integers, got element type `float64`\nhint: .*argmax"),
        ({"y": np.full(1000, -1)}, "labels: -1 is no class"),
        ({"y": np.full(1000, 10)}, "must be below 10, the model's classes, got 10"),
        ({"model": b"nonsense"}, "model.onnx"),
        ({"model": "nowhere.onnx"}, "nowhere.onnx"),
        ({"x": "nowhere.npz", "y": None}, "cannot read `nowhere.npz`"),
        ({"accelerator": "nothing"}, "`nothing`"),
        ({"max_drop": 2.0}, "from 0 to below 1, such as 0.005 for half a point, got 2"),
        ({"test": "luck"}, "test must be one of .*, got `luck`"),
        ({"storage": "heap"}, "storage must be one of .*, got `heap`"),
        ({"points": ["w99a1"]}, "w99a1"),
        ({"mean": [0.0, 0.0]}, "`mean` must hold 1 or 1 values, got 2"),
        ({"stages": 9}, "1 to 4 stages, got 9"),
        ({"stages": -1}, "stages"),
        ({"class_mix": [1.0]}, "10 shares, one for each class, got 1"),
        ({"seed": "one"}, "seed"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"calibration_samples": 0}, "shares must leave samples for all"),
    ],
)
def test_bad_input_is_named(model, data, options, change, message):
    x, y, _, _ = data
    arguments = {"model": model, "x": x, "y": y, **options, **change}
    with pytest.raises(bg.Error, match=message):
        bg.characterize(**arguments)


def test_a_folder_that_holds_no_run_is_named(tmp_path):
    with pytest.raises(bg.Error, match="is no finished run: expected a file `summary.json`"):
        bg.load(tmp_path)


def test_a_damaged_trace_is_an_error(run, tmp_path):
    saved = run.save(tmp_path / "run")
    (saved.path / "trace.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    (saved.path / "summary.json").write_text("{")
    with pytest.raises(bg.Error, match="is no trace"):
        saved.trace  # noqa: B018
    with pytest.raises(bg.Error, match="is damaged"):
        saved.summary  # noqa: B018


def test_the_summary_is_what_the_file_says(run):
    assert run.summary == json.loads((run.path / "summary.json").read_text())


def test_what_is_optional_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'bitgear\[plot\]'"):
        run.plot()
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "bitgear.ray", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'bitgear\[ray\]'"):
        importlib.import_module("bitgear.ray")
