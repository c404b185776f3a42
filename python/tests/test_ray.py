"""Many machines: a local cluster of two workers."""

import os
import signal
import threading
import time
from pathlib import Path

import bitgear as bg
import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="SKIPPED: ray is not installed")
fsspec = pytest.importorskip("fsspec", reason="SKIPPED: fsspec is not installed")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def _workers():
    """Process ids of this process's own workers that trace."""
    parents, named = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            title = (folder / "cmdline").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        if "MapWorker" in title:
            named.append(int(folder.name))

    def ours(pid):
        while pid > 1:
            pid = parents.get(pid, 0)
            if pid == os.getpid():
                return True
        return False

    return [pid for pid in named if ours(pid)]


def test_a_killed_worker_changes_nothing(run, model, data, options, tmp_path):
    x, y, _, _ = data
    fragments = tmp_path / "fragments"
    killed = []

    def kill():
        while not killed:
            workers = _workers()
            # Once both are at work and something has been traced.
            if len(workers) == 2 and fragments.is_dir() and any(fragments.iterdir()):
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
            time.sleep(0.005)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    shuffled = bg.ray.dataset(x, y, shards=20).random_shuffle(seed=3).materialize()
    found = bg.ray.characterize(
        shuffled, model, batch_size=50, fragments=fragments.as_uri(), **options
    )
    thread.join(timeout=60)
    assert killed and killed[0] not in _workers()
    for name in ("policy.json", "summary.json", "trace.parquet", "model.bitgear"):
        assert (found.path / name).read_bytes() == (run.path / name).read_bytes(), name

    # From the folder of fragments the decision is taken anywhere, also by the command line.
    again = bg.characterize(model, x, y, trace=fragments, **options)
    assert again.policy == run.policy
    next(fragments.iterdir()).unlink()
    with pytest.raises(bg.Error, match=r"expected \d+ samples, got \d+; sample \d+ is missing"):
        bg.characterize(model, x, y, trace=fragments, **options)
    with pytest.raises(bg.Error, match="is of another run"):
        bg.characterize(model, x, y, trace=run.path / "trace.parquet", **{**options, "seed": 2})


def test_fragments_go_to_an_object_store(bucket, run, model, data, options, tmp_path):
    x, y, _, _ = data
    store, storage_options = bucket
    rows = bg.ray.dataset(x, y, shards=4)
    kept = {"fragments": "s3://bucket/run/fragments", "storage_options": storage_options}
    found = bg.ray.characterize(rows, model, **kept, **options)
    assert found.policy == run.policy
    store.get("bucket/run/fragments", str(tmp_path / "fetched"), recursive=True)
    assert len(list((tmp_path / "fetched").glob("*.parquet"))) > 1
    again = bg.characterize(model, x, y, trace=tmp_path / "fetched", **options)
    assert again.policy == run.policy


def test_samples_without_labels_nested_weights_and_external_data_give_the_same_run(
    model, data, options, tmp_path
):
    onnx_file = _with_external_data(model, tmp_path / "model")
    x = data[0]
    # At this target both points are stages, so that there are weights to share.
    two = {"points": ["w2a2", "w8a8"], "max_drop": 0.03}
    arguments = {**options, **two, "storage": "nested"}
    here = bg.characterize(onnx_file, x, out=tmp_path / "here", **arguments)
    assert here.summary["storage"]["kind"] == "nested"
    kept = tmp_path / "fragments"
    rows = bg.ray.dataset(x, shards=4)
    there = bg.ray.characterize(rows, onnx_file, fragments=kept.as_uri(), **arguments)
    for name in ("policy.json", "summary.json", "trace.parquet", "model.bitgear"):
        assert (there.path / name).read_bytes() == (here.path / name).read_bytes(), name
    again = bg.characterize(onnx_file, x, trace=kept, **arguments)
    assert again.policy == here.policy


def _with_external_data(model, folder):
    """The model with its weights in a file of their own."""
    onnx = pytest.importorskip("onnx", reason="SKIPPED: onnx is not installed")
    folder.mkdir()
    proto = onnx.load(model)
    settings = {"all_tensors_to_one_file": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, **settings)
    assert (folder / "weights.bin").stat().st_size > 1000
    return folder / "model.onnx"


def test_data_that_is_no_whole_is_refused(model, data, options):
    x, y, _, _ = data
    whole = bg.ray.dataset(x[:40], y[:40], shards=2)
    with pytest.raises(bg.Error, match="expected columns `x`, `sample` and, with labels, `y`"):
        bg.ray.characterize(whole.drop_columns(["sample"]), model, **options)
    with pytest.raises(bg.Error, match="`sample` must hold each index from 0 to 19 once"):
        part = whole.filter(lambda row: row["sample"] >= 20)
        bg.ray.characterize(part, model, **options)
    with pytest.raises(bg.Error, match="expected 40, one per sample, got 39"):
        bg.ray.dataset(x[:40], y[:39])


def test_a_worker_names_what_is_wrong_with_its_shard(data):
    x, y, _, _ = data
    with pytest.raises(bg.Error, match="these bytes are no tracer"):
        bg._native.Tracer(b"nonsense", 1)
    hashes, kind = bg._native.sample_hashes(x[:3])
    assert (len(hashes), kind) == (96, "u1")
    assert np.array_equal(bg._native.sample_hashes(x[1:2])[0], hashes[32:64])
