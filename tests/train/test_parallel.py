"""Two processes against one: the same loss, prototypes and weights."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from support.tiny import DEMO_CLIP
from support.trainings import Inputs, settings, start

from latteclip.train import parallel
from latteclip.train.data import TrainingFiles

CLASSNAMES = ["striped", "dotted", "woven", "cracked", "smooth"]
N = 37
FILES = ("prototypes.safetensors", "open_clip_model.safetensors")


@pytest.mark.parametrize(("n", "size"), [(7, 3), (2, 3)])
def test_shares_are_the_whole_in_order(monkeypatch, n, size):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    shares = []
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(parallel.share(list(range(n))))
    assert [item for share in shares for item in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def run(folder, inputs, settings, processes):
    process = start(folder, inputs, settings, processes)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    labels = [i % 4 for i in range(N)]
    files = Inputs(tmp_path_factory.mktemp("parallel"), labels, classnames=CLASSNAMES)
    captions = [f"a red {CLASSNAMES[label]} {i}" for i, label in enumerate(labels)]
    groups = files.groups([[i] for i in range(N)], captions[::-1])
    return TrainingFiles(files.index, files.labels, files.captions(captions), groups)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The demo's CLIP without its patch dropout, which would draw for each process anew."""
    folder = tmp_path_factory.mktemp("model") / "clip"
    shutil.copytree(DEMO_CLIP, folder)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    del config["model_cfg"]["vision_cfg"]["patch_dropout"]
    path.write_text(json.dumps(config))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def chosen(model):
    """Settings of five epochs, each of four steps."""
    return settings(
        model=model, switches={"mixer_prototypes": "epoch"}, batch_size=9, epochs=5
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory, inputs, chosen):
    """The folder of a training by two processes."""
    return run(tmp_path_factory.mktemp("two"), inputs, chosen, 2)


def distance(weights, others):
    return sum((weights[name] - others[name]).square().sum() for name in weights).sqrt()


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path, inputs, chosen, two):
    one = run(tmp_path, inputs, chosen, 1)
    first, second = (pq.read_table(folder / "history").to_pydict() for folder in (one, two))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert (
        len(set(first["loss"])) == len(first["loss"]) >= 8
    )  # each step has learnt from the last
    for name in ("agreement", "prototype_drift", "logit_scale", "entropy"):
        assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name
    prototypes = [load_file(each / "model" / FILES[0])["classifier"] for each in (one, two)]
    torch.testing.assert_close(*prototypes, rtol=1e-3, atol=2e-4)
    start, *ends = (
        load_file(each / FILES[1]) for each in (DEMO_CLIP, one / "model", two / "model")
    )
    assert distance(*ends) < 1e-3 * distance(start, ends[0])
    assert (two / "log").read_text().count(
        "The training has"
    ) == 1  # the first process logs


def worker(process, rank):
    """Process id of a process that torchrun started."""
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return int(pid)
    raise LookupError(rank)


@pytest.mark.slow
def test_two_processes_end_on_a_signal_with_one_checkpoint_and_go_on_from_it(
    tmp_path, inputs, chosen, two
):
    folder = tmp_path / "broken"
    process = start(folder, inputs, chosen, 2)
    while not list(folder.glob("checkpoint/step-*")) and process.poll() is None:
        time.sleep(0.001)
    os.kill(worker(process, 1), signal.SIGTERM)
    process.communicate()
    assert process.returncode != 0
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    kept = int(re.search(r"Step (\d+) is saved", log)[1])
    assert list(folder.glob(f"checkpoint/step-{kept:08d}-*.pt"))
    assert not (folder / "model").exists()
    run(folder, inputs, chosen, 2)
    assert f"Resuming after step {kept}," in (folder / "log").read_text()
    for file in FILES:
        assert (folder / "model" / file).read_bytes() == (two / "model" / file).read_bytes()
    first, second = (
        pq.read_table(run / "history").drop_columns(["images_per_second", "data_wait"])
        for run in (two, folder)
    )
    assert first == second
