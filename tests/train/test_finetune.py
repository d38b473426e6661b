import contextlib
import math
import random
import re
import shutil
import signal
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from support import reference
from support.tiny import FINETUNE, ROOT, write_captions, write_pseudo_labels
from support.trainings import CLASSNAMES, Inputs, settings, start

from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier
from latteclip.clip.encode import class_embeddings
from latteclip.core import tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError, full_disk
from latteclip.core.holdout import Fold
from latteclip.train import finetune as finetuning
from latteclip.train.data import TrainingFiles
from latteclip.train.finetune import Checkpoint, finetune
from latteclip.train.settings import Recipe, TrainingMetadata

LABELS = [2, 0, 2, 1, 0, 2, 1]
FULL = Path("/dev/full")
WEIGHTS = "open_clip_model.safetensors"


class Trainings(Inputs):
    """Seven training pictures with pseudo-labels and captions, and trainings in a folder."""

    def __init__(self, folder):
        super().__init__(folder, LABELS)
        images = self.captions([f"a red {CLASSNAMES[label]}" for label in LABELS])
        captions = [f"mostly {CLASSNAMES[label]} {i}" for i, label in enumerate(LABELS)]
        self.texts = (images, self.groups([[i] for i in range(7)], captions))

    def run(self, name, objective="latteclip", seed=3, written=None, labels=None, **given):
        """Train, on other pseudo-labels if there are labels."""
        self.write_index(written=written)
        table = self.labels
        if labels:
            table = write_pseudo_labels(self.folder / f"{name}.parquet", self.names, labels)
        parts = ("model", "history.parquet", "checkpoint")
        outputs = [self.folder / name / part for part in parts]
        finetune(
            TrainingFiles(self.index, table, *self.texts),
            settings(objective, **given),
            Fold(),
            *map(str, outputs),
            **{"seed": seed, "checkpoint_minutes": 0, "device": "cpu", "threads": 1},
        )
        return outputs[:2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Trainings(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def tuned(inputs):
    """LatteCLIP tuned for six steps; it never touches a test image, none of which exists."""
    return inputs.run("tuned")


def state(model):
    return load_file(model / WEIGHTS)


def test_a_training_writes_prototypes_of_length_one_and_a_row_a_step(tuned, demo_clip):
    head, described = load_classifier(Path(tuned[0]) / clips.CLASSIFIER)
    assert described["classnames"] == CLASSNAMES
    torch.testing.assert_close(head.weights.norm(dim=1), torch.ones(3))
    start = class_embeddings(
        demo_clip, ClassTemplates(["a photo of a {} texture."]), CLASSNAMES
    )
    cosines = (head.weights * start).sum(dim=1)
    assert (cosines > 0.9).all() and (cosines < 1).all()  # momentum: alpha is 0.01
    metadata = tables.read_metadata(tuned[1], TrainingMetadata)
    assert metadata.recipe == Recipe(**FINETUNE)
    table = pq.read_table(tuned[1]).to_pandas()
    assert table["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert table["epoch"].tolist() == [0, 0, 0, 1, 1, 1]
    rates = [reference.learning_rate(step, 6, 1, 1e-3) for step in range(6)]
    assert table["lr"].tolist() == pytest.approx(rates)
    assert table["loss"].between(0, 10).all()


def test_the_same_seed_gives_the_same_bytes_and_another_another_model(inputs, tuned):
    assert_same_run(inputs.run("again"), tuned)
    other = inputs.run("other", seed=4)
    assert not torch.equal(state(other[0])["visual.proj"], state(tuned[0])["visual.proj"])


def test_training_has_the_first_template_and_the_classes_own_names(inputs):
    template = "a photo of a {} texture."
    words = {"template": [template, "a {}"], "class_synonyms": {"dotted": ["spotted"]}}
    written = {CLASSNAMES[0]: CLASSNAMES[0].upper()}
    plain, more = (
        inputs.run(f"words {len(options)}", "flyp", epochs=1, **options)[0]
        for options in ({}, words | {"written": written})
    )
    assert (plain / WEIGHTS).read_bytes() == (more / WEIGHTS).read_bytes()
    heads = [load_classifier(model / clips.CLASSIFIER) for model in (plain, more)]
    assert torch.equal(heads[0][0].weights, heads[1][0].weights)
    assert heads[0][1]["classnames"] == CLASSNAMES
    assert heads[1][1]["class_templates"]["written"] == written


def flags_of(run):
    return tables.read_metadata(run[1], TrainingMetadata).flags


def test_a_training_that_predicts_few_classes_or_few_labels_is_called_collapsed(tmp_path):
    stripes = Trainings(tmp_path / "stripes")
    textures = Trainings(tmp_path / "textures")
    with tarfile.open(ROOT / "latteclip" / "demo" / "images" / "train.tar") as archive:
        names = [name for name in archive.getnames() if name.endswith(".jpg")]
        for place, label in enumerate(LABELS):
            for inputs, each in ((stripes, 0), (textures, label)):
                own = [name for name in names if f"/{CLASSNAMES[each]}/" in name]
                content = archive.extractfile(own[place]).read()
                Path(inputs.files[place]).write_bytes(content)
    still = {"objective": "flyp", "lr": 1e-9}
    assert flags_of(textures.run("right", **still)) == []
    others = [(label + 1) % 3 for label in LABELS]
    assert flags_of(textures.run("wrong", labels=others, **still)) == ["collapsed"]
    assert flags_of(stripes.run("one", labels=[0] * 7, **still)) == ["collapsed"]


@pytest.mark.parametrize(("first", "last", "flags"), [(1, 0, ["collapsed"]), (0, 1, [])])
def test_the_last_epoch_alone_says_whether_a_training_collapsed(first, last, flags):
    history = [{"epoch": epoch, "agreement": a} for epoch, a in ((0, first), (1, last))]
    training = SimpleNamespace(history=history, predicted=torch.ones(3, dtype=torch.bool))
    assert finetuning._flags(settings(), training) == flags


def test_batches_of_an_epoch_are_a_multiple_of_three(inputs):
    """As in the paper's code; seven images make two batches of four."""
    _, history = inputs.run("steps", "flyp", batch_size=4, epochs=2)
    assert pq.read_table(history)["epoch"].to_pylist() == [0, 0, 0, 1, 1, 1]


def test_what_training_leaves_as_it_was_pretrained(inputs, backbones):
    """The statistics of BatchNorm, and a scale of the logits that is above the paper's bound."""
    for kind in ("resnet", "siglip"):
        name = backbones[kind]
        before = load_file(Path(name.removeprefix("local-dir:")) / WEIGHTS)
        after = state(inputs.run(kind, "flyp", model=name, epochs=1, lr=1e-5)[0])
        buffers = [key for key in before if "running" in key or "num_batches" in key]
        assert bool(buffers) == (kind == "resnet")
        assert all(torch.equal(before[key], after[key]) for key in buffers)
        assert not torch.equal(before["logit_scale"], after["logit_scale"])
    assert after["logit_scale"] > math.log(101)


def test_a_loss_that_explodes_stops_the_training_and_writes_nothing(inputs):
    with pytest.raises(UserError, match=r"finetune\.lr"):
        inputs.run("explodes", lr=1e30, epochs=3, warmup_steps=0)
    assert list((inputs.folder / "explodes").glob("*")) == []


# --- resuming ------------------------------------------------------------------------------------

EPOCHS = 4  # of three steps


@pytest.fixture
def broken(inputs, monkeypatch, tmp_path):
    """The folder of a run that was interrupted after three steps."""

    def save_and_break(self, training):
        save(self, training)
        raise KeyboardInterrupt

    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", save_and_break)
    with pytest.raises(KeyboardInterrupt):
        inputs.run(tmp_path.name, epochs=EPOCHS)
    monkeypatch.setattr(Checkpoint, "save", save)
    assert names(inputs.folder / tmp_path.name) == ["checkpoint"]
    return inputs.folder / tmp_path.name


def assert_same_run(first, second):
    for name in (WEIGHTS, clips.CLASSIFIER):
        assert (first[0] / name).read_bytes() == (second[0] / name).read_bytes()
    assert pq.read_table(first[1]) == pq.read_table(second[1])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_of_another_training_is_not_resumed(
    inputs, broken, monkeypatch, caplog
):
    blue = write_captions(inputs.folder / "b.parquet", inputs.names, ["blue"] * 7)
    monkeypatch.setattr(inputs, "texts", (blue, inputs.texts[1]))
    with caplog.at_level("INFO"):
        inputs.run(broken.name, epochs=EPOCHS)
    assert "Resuming" not in caplog.text


# --- kills and signals ---------------------------------------------------------------------------


def test_the_first_of_two_processes_that_train_the_same_wins(inputs, tuned, monkeypatch):
    """As where Snakemake was killed, its job went on, and a rerun started it again."""
    end = finetuning._write

    def end_second(*args):
        for made in tuned:
            copy = shutil.copytree if made.is_dir() else shutil.copy
            copy(made, inputs.folder / name / made.name)
        return end(*args)

    monkeypatch.setattr(finetuning, "_write", end_second)
    for name, lr in (("orphan", {}), ("another", {"lr": 0.5})):
        with pytest.raises(UserError, match="model") if lr else contextlib.nullcontext():
            inputs.run(name, **lr)
        model, steps = (inputs.folder / name / made.name for made in tuned)
        assert (model / WEIGHTS).read_bytes() == (tuned[0] / WEIGHTS).read_bytes()
        assert pq.read_table(steps).equals(pq.read_table(tuned[1]))
    assert names(inputs.folder / "another" / "checkpoint")  # nothing of it is lost either
    monkeypatch.setattr(finetuning, "_train", None)
    inputs.run("orphan")  # which ended before the rerun began
    with pytest.raises(UserError, match="model"):
        inputs.run("another", lr=0.5)


def test_a_full_disk_under_a_checkpoint_is_one(inputs, monkeypatch, tmp_path):
    monkeypatch.setattr(finetuning, "replacing", lambda path: contextlib.nullcontext(FULL))
    training = SimpleNamespace(history=[], state_dict=lambda: {"a": torch.ones(10**6)})
    with pytest.raises(OSError) as caught:
        Checkpoint(str(tmp_path), "x", 0).save(training)
    assert full_disk(caught.value)


@pytest.fixture(scope="module")
def command(inputs):
    """Starts a training of ten epochs by the command line, its parts in a folder."""
    files = TrainingFiles(inputs.index, inputs.labels, *inputs.texts)
    return lambda folder: start(folder, files, settings(epochs=10))


@pytest.mark.slow
def test_a_run_that_is_ended_again_and_again_ends_with_the_same_bytes(
    command, inputs, tmp_path
):
    """At random moments after it has written a checkpoint, through the command line."""
    assert command(inputs.folder / "whole").wait() == 0
    delays = random.Random(0)
    checkpoint, kept = tmp_path / "checkpoint", None
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None):
        before = written(checkpoint)
        process = command(tmp_path)
        while process.poll() is None and number:
            if written(checkpoint) > before:  # an epoch more, then a little longer
                time.sleep(delays.uniform(0, 0.1))
                process.send_signal(number)
                break
            time.sleep(0.005)
        process.communicate()
        log = (tmp_path / "log").read_text()
        if kept:  # a signal costs no step
            assert f"Resuming after step {kept}," in log
        if process.returncode == 0:
            break
        if number != signal.SIGKILL:
            assert process.returncode == 128 + number
            kept = re.search(r"Step (\d+) is saved", log)[1]
    assert process.returncode == 0
    assert kept
    assert_same_run(
        *((run / "model", run / "history") for run in (inputs.folder / "whole", tmp_path))
    )
    assert not checkpoint.exists()


def written(folder):
    """When the last checkpoint was written."""
    return max((file.stat().st_mtime_ns for file in folder.glob("*.pt")), default=0)
