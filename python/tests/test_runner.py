"""Policies that run."""

import multiprocessing
import pickle
import subprocess
import sys
import threading
import time

import bitgear as bg
import numpy as np
import pytest


@pytest.fixture(scope="module")
def runner(run):
    return run.runner()


def test_answers_are_those_of_the_summary(run, runner, data):
    x, y, _, _ = data
    test = run.trace.sample[run.trace.split == "test"]
    labels, scores, stages, energies = runner(x[test])
    policy = run.summary["policy"]
    assert (labels == y[test]).mean() == pytest.approx(policy["accuracy"])
    assert (stages > 0).mean() == pytest.approx(policy["escalation_rates"][0])
    assert energies.mean() == pytest.approx(policy["energy_uj"]["total"])
    assert scores.shape == (len(test), 10) and np.array_equal(scores.argmax(1), labels)


def test_answers_depend_on_neither_batch_nor_threads_nor_type(run, runner, data):
    x = data[2]
    whole = runner(x)
    one = bg.Runner(run.bundle, threads=1)
    single = [one(x[i : i + 1]) for i in range(20)]
    for column, parts in zip(whole, zip(*single)):
        assert np.array_equal(column[:20], np.concatenate(parts))
    for other in (x.astype(np.float64), np.asfortranarray(x), x.astype(">i4"), x.tolist()):
        assert np.array_equal(runner(other).scores, whole.scores)
    ready = x.astype(np.float32) * np.float32(1 / 255)
    assert np.array_equal(runner(ready, preprocessed=True).scores, whole.scores)


def test_each_policy_of_a_bundle_runs_and_costs_what_the_summary_says(model, quick, data, tmp_path):
    # One stage each, so that the bundle holds more networks than a policy has stages.
    targets = {"points": ["w2a2", "w8a8"], "stages": 1, "max_drop": 0.0, "also_max_drop": [0.5]}
    run = bg.characterize(model, out=tmp_path / "run", **{**quick, **targets})
    (other,) = run.summary["options"]
    assert run.runner().points != run.runner(policy=other["name"]).points
    x, y = quick["x"], quick["y"]
    test = run.trace.sample[run.trace.split == "test"]
    for name, said in [("main", run.summary["policy"]), (other["name"], other)]:
        runner = pickle.loads(pickle.dumps(run.runner(policy=name)))
        labels, _, _, energies = runner(x[test])
        assert (labels == y[test]).mean() == pytest.approx(said["accuracy"])
        assert energies.mean() == pytest.approx(said["energy_uj"]["total"])
    assert (run.save(tmp_path / "copy").path / f"policy-{other['name']}.json").is_file()
    with pytest.raises(bg.Error, match="no policy `third`"):
        run.runner(policy="third")


def test_an_empty_batch_has_empty_answers(runner):
    answers = runner(np.zeros((0, 1, 28, 28), np.uint8))
    assert answers.labels.shape == (0,) and answers.scores.shape == (0, 10)


def test_a_runner_knows_its_input_and_stages(run, runner):
    assert runner.input_shape == (1, 28, 28) and runner.classes == 10
    assert runner.policy == run.policy
    assert runner.points[-1] == run.policy["last_resort"]["point"]
    assert " > ".join(runner.points) in repr(runner)


def test_a_pickled_runner_answers_the_same(runner, data):
    again = pickle.loads(pickle.dumps(runner))
    assert np.array_equal(again(data[2]).scores, runner(data[2]).scores)


def _labels(runner, x, queue):
    queue.put(runner(x).labels)


def test_a_runner_works_after_a_fork(runner, data):
    x = data[2][:40]
    expected = runner(x).labels
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_labels, args=(runner, x, queue))
    process.start()
    assert np.array_equal(queue.get(timeout=60), expected)
    process.join(timeout=60)
    assert process.exitcode == 0


def test_a_runner_travels_to_another_interpreter(runner, data, tmp_path):
    x = data[2][:40]
    (tmp_path / "job").write_bytes(pickle.dumps((runner, x)))
    code = "import pickle, sys; r, x = pickle.load(open(sys.argv[1], 'rb')); print(*r(x).labels)"
    command = [sys.executable, "-c", code, str(tmp_path / "job")]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == [str(label) for label in runner(x).labels]


def test_the_interpreter_goes_on_while_networks_run(runner, data):
    x = np.concatenate([data[0]] * 8)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (runner(x), done.set()))
    turns = 0
    thread.start()
    while not done.is_set():
        turns += 1
        time.sleep(0.0005)
    thread.join()
    # With the lock held there would be one turn for each of 47 batches at most.
    assert turns > 100


def test_a_data_loader_feeds_a_runner(runner, data):
    torch = pytest.importorskip("torch", reason="SKIPPED: torch is not installed")
    x, y, _, _ = data
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))
    right = 0
    for images, labels in torch.utils.data.DataLoader(dataset, batch_size=64, num_workers=1):
        right += int((runner(images).labels == labels.numpy()).sum())
    assert right == int((runner(x).labels == y).sum())


def test_a_runner_works_in_the_workers_of_a_data_loader(runner, data):
    torch = pytest.importorskip("torch", reason="SKIPPED: torch is not installed")
    x = data[2]

    class Labelled(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return int(runner(x[index : index + 1]).labels[0])

    loader = torch.utils.data.DataLoader(Labelled(), batch_size=10, num_workers=2)
    assert np.array_equal(np.concatenate([b.numpy() for b in loader]), runner(x[:40]).labels)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 28, 28), np.uint8), r"expected shape \(N, 1, 28, 28\), got \(1, 28, 28\)\nhint: add"),
        (np.zeros((2, 3, 28, 28), np.uint8), r"expected shape \(N, 1, 28, 28\), got \(2, 3, 28, 28\)"),
        (np.uint8(1), r"expected shape .*, got \(1,\)"),
        (np.full((3, 1, 28, 28), np.inf), "sample 0 holds a value that is not finite"),
        (np.zeros((2, 1, 28, 28), "U3"), "element type `str96` is not supported"),
        (np.zeros((2, 1, 28, 28), object), "element type `object` is not supported"),
    ],
)
def test_bad_input_is_named(runner, x, message):
    with pytest.raises(bg.Error, match=message):
        runner(x)


def test_what_is_no_bundle_is_refused(tmp_path):
    (tmp_path / "bad").write_bytes(b"no bundle")
    with pytest.raises(bg.Error, match="is no bundle"):
        bg.Runner(tmp_path / "bad")
    with pytest.raises(bg.Error, match="these bytes are no bundle"):
        bg.Runner(b"")
    with pytest.raises(bg.Error, match="cannot access"):
        bg.Runner(tmp_path / "missing")
