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


def settings_of(model, **finetune):
    return settings(model=model, switches={"mixer_prototypes": "epoch"}, **finetune)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path, inputs, model):
    chosen = settings_of(model, batch_size=32, epochs=4)
    one, two = (run(tmp_path / str(n), inputs, chosen, n) for n in (1, 2))
    first, second = (pq.read_table(folder / "history").to_pydict() for folder in (one, two))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert len(set(first["loss"])) == len(first["loss"]) >= 8  # each step has learnt from the last
    for name in ("agreement", "prototype_drift", "logit_scale", "entropy"):
        assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name
    for file in FILES:
        wanted = load_file(one / "model" / file)
        for name, tensor in load_file(two / "model" / file).items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=2e-4, msg=name)
    assert (two / "log").read_text().count("The training has") == 1  # the first process logs


def worker(process, rank):
    """Process id of a process that torchrun started."""
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return int(pid)
    raise LookupError(rank)


@pytest.mark.slow
def test_two_processes_end_on_a_signal_with_one_checkpoint_and_go_on_from_it(
    tmp_path, inputs, model
):
    chosen = settings_of(model, batch_size=9, epochs=6)  # of four steps
    whole, folder = run(tmp_path / "whole", inputs, chosen, 2), tmp_path / "broken"
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
        assert (folder / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()
    first, second = (
        pq.read_table(run / "history").drop_columns(["images_per_second", "data_wait"])
        for run in (whole, folder)
    )
    assert first == second
