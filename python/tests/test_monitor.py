"""Watching a stream of answers."""

import json

import bitgear as bg
import numpy as np
import pytest


@pytest.fixture(scope="module")
def runner(run):
    return run.runner()


def test_answers_like_the_certified_ones_raise_no_alarm_and_noise_does(runner, data):
    x = data[2]
    monitor = bg.Monitor(runner)
    for first in range(0, len(x), 100):
        answers = runner(x[first : first + 100])
        assert not monitor.observe(answers.confidences, answers.stages)
    found = monitor.finding
    assert found["inputs"] == 500 and not found["drifted"] and found["since"] is None
    assert found["escalation_rates"][0] == pytest.approx((runner(x).stages > 0).mean())
    noise = np.random.default_rng(1).integers(0, 256, x.shape, np.uint8)
    answers = runner(noise)
    assert monitor.observe(answers.confidences, answers.stages)
    assert 500 < monitor.finding["noticed_at"] <= 1000
    assert "drifted, noticed at input" in repr(monitor)


def test_a_monitor_takes_a_runner_a_run_or_a_file_and_batches_of_any_size(run, runner, data):
    answers = runner(data[2])
    monitors = [bg.Monitor(source) for source in (runner, run, run.path / "policy.json")]
    for monitor in monitors:
        monitor.observe(answers.confidences, answers.stages)
    assert monitors[0].finding == monitors[1].finding == monitors[2].finding
    # Input by input, as a device logs.
    slow = bg.Monitor(run)
    for confidence, stage in zip(answers.confidences.tolist(), answers.stages.tolist()):
        slow.observe(confidence, stage)
    assert slow.finding == monitors[0].finding


def test_the_answers_of_a_runner_are_four_arrays_and_know_how_sure_the_first_stage_was(run, data):
    answers = run.runner()(data[2])
    labels, scores, stages, energies = answers
    assert answers.confidences.shape == labels.shape == stages.shape == energies.shape
    # Inputs that went on were less sure than those that did not.
    handed_on = answers.confidences[stages > 0]
    assert handed_on.size and handed_on.max() < answers.confidences[stages == 0].min()


def test_bad_input_is_named(run, runner, tmp_path):
    for level in (0.0, 1.0, -1.0):
        with pytest.raises(bg.Error, match="`level` must be a fraction between 0 and 1"):
            bg.Monitor(run, level=level)
    monitor = bg.Monitor(run)
    with pytest.raises(bg.Error, match="expected a stage for each of 2 confidences, got 1"):
        monitor.observe([1, 2], [0])
    with pytest.raises(bg.Error, match="stages must be below 2, the policy's stages, got 7"):
        monitor.observe([1], [7])
    with pytest.raises(bg.Error, match="confidences: expected integers"):
        monitor.observe([0.5], [0])
    with pytest.raises(bg.Error, match="cannot read"):
        bg.Monitor(tmp_path / "nowhere.json")
    policy = {key: value for key, value in run.policy.items() if key != "certificate"}
    (tmp_path / "bare.json").write_text(json.dumps(policy | {"certificate": None}))
    with pytest.raises(bg.Error, match="has no certificate to watch"):
        bg.Monitor(tmp_path / "bare.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(bg.Error, match="expected what is in `policy.json`"):
        bg.Monitor(tmp_path / "other.json")
