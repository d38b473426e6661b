import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny import DEMO_CLIP, write_captions, write_index, write_pictures, write_pseudo_labels

from latteclip import clip as clips
from latteclip.errors import UserError
from latteclip.finetune import (
    FinetuneSettings,
    Optimiser,
    TrainingFiles,
    check_finite,
    finetune,
    parameter_groups,
    schedule,
)

CLASSNAMES = ["striped", "dotted", "woven"]
LABELS = [2, 0, 2, 1, 0, 2, 1]
OPTIMISER = {
    "epochs": 2,
    "warmup_steps": 1,
    "batch_size": 3,
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.98,
    "eps": 1e-6,
    "weight_decay": 0.2,
}


def test_every_epoch_is_a_new_shuffle_in_whole_batches():
    steps = schedule(n=11, batch_size=3, epochs=4, seed=5)
    assert [epoch for epoch, _ in steps] == [e for e in range(4) for _ in range(3)]
    orders = []
    for epoch in range(4):
        keys = [key for e, batch in steps if e == epoch for key in batch]
        assert all(e == epoch for e, _ in keys)
        order = [index for _, index in keys]
        assert len(set(order)) == 9
        assert set(order) <= set(range(11))
        orders.append(tuple(order))
    assert all(len(batch) == 3 for _, batch in steps)
    assert len(set(orders)) == 4


def test_images_that_sit_out_change_with_the_epoch():
    used = [set() for _ in range(6)]
    for epoch, batch in schedule(11, 3, 6, 5):
        used[epoch] |= {index for _, index in batch}
    assert len(set(map(frozenset, used))) > 1


def test_fewer_images_than_a_batch_holds_are_one_batch():
    steps = schedule(n=5, batch_size=8, epochs=2, seed=0)
    assert [sorted(index for _, index in batch) for _, batch in steps] == [[0, 1, 2, 3, 4]] * 2


def test_schedule_is_a_function_of_the_seed():
    assert schedule(11, 3, 2, 5) == schedule(11, 3, 2, 5)
    assert schedule(11, 3, 2, 5) != schedule(11, 3, 2, 6)


def test_rate_rises_linearly_then_falls_by_a_cosine():
    optimiser = Optimiser(**OPTIMISER | {"warmup_steps": 4, "lr": 8.0})
    rates = [optimiser.rate(step, 14) for step in range(14)]
    assert rates[:5] == pytest.approx([2, 4, 6, 8, 8])
    for step in range(4, 14):
        assert rates[step] == pytest.approx(4 * (1 + math.cos(math.pi * (step - 4) / 10)))
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.3


def test_rate_without_warm_up_starts_at_the_top():
    assert Optimiser(**OPTIMISER | {"warmup_steps": 0, "lr": 8.0}).rate(0, 10) == 8


def test_a_warm_up_longer_than_the_training_never_reaches_the_top():
    optimiser = Optimiser(**OPTIMISER | {"warmup_steps": 10, "lr": 8.0})
    assert [optimiser.rate(step, 3) for step in range(3)] == pytest.approx([0.8, 1.6, 2.4])


def test_only_matrices_decay(demo_clip):
    groups = parameter_groups(demo_clip.model, 0.2)
    named = {id(p): name for name, p in demo_clip.model.named_parameters()}
    decayed, spared = (
        {named[id(p)] for p in group["params"]}
        for group in sorted(groups, key=lambda group: -group["weight_decay"])
    )
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.2]
    assert decayed | spared == set(named.values())
    assert not decayed & spared
    assert {"logit_scale", "ln_final.weight", "ln_final.bias", "visual.ln_pre.weight"} <= spared
    assert {"text_projection", "token_embedding.weight", "visual.conv1.weight"} <= decayed
    assert not any(name.endswith(".bias") for name in decayed)


def test_frozen_parameters_are_not_trained():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5))
    model[0].requires_grad_(False)
    trained = [p for group in parameter_groups(model, 0.2) for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model[1].parameters()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_step(value):
    rows = [{"step": step, "epoch": 4, "loss": torch.tensor(1.0)} for step in range(7, 11)]
    check_finite(rows)
    rows[2]["loss"] = torch.tensor(value)
    with pytest.raises(UserError, match=r"at step 9 \(epoch 5\)"):
        check_finite(rows)


class Inputs:
    """Seven training pictures with pseudo-labels and captions; test pictures are not on disk."""

    def __init__(self, folder):
        self.folder = folder
        train = write_pictures(folder / "pictures", 7)
        files = [str(folder / "test0.png"), *train, str(folder / "test1.png")]
        splits = ["test", *["train"] * 6, "val", "test"]
        self.names = [Path(file).name for file in train]
        self.index = write_index(folder / "i.parquet", files, splits, [0] * 9, CLASSNAMES)
        self.labels = write_pseudo_labels(folder / "p.parquet", self.names, LABELS)
        self.images = write_captions(
            folder / "c.parquet", self.names, [f"a red {CLASSNAMES[label]}" for label in LABELS]
        )
        self.groups = write_captions(
            folder / "g.parquet",
            [str(i) for i in range(7)],
            [f"mostly {CLASSNAMES[label]} {i}" for i, label in enumerate(LABELS)],
            LABELS,
        )

    def run(self, name, objective="latteclip", seed=3, switches=None, captions=True, **optimiser):
        settings = FinetuneSettings(
            model=f"local-dir:{DEMO_CLIP}",
            pretrained=None,
            template="a photo of a {} texture.",
            objective=objective,
            optimiser=OPTIMISER | optimiser,
            switches=switches or {},
        )
        captions = (self.images, self.groups) if captions else ()
        outputs = self.folder / name / "model", self.folder / name / "history.parquet"
        finetune(
            TrainingFiles(self.index, self.labels, *captions),
            settings,
            *map(str, outputs),
            seed=seed,
            device="cpu",
            threads=1,
        )
        return outputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def tuned(inputs):
    """LatteCLIP tuned for four steps; it never touches a test image, none of which exists."""
    return inputs.run("tuned")


def state(model):
    return load_file(model / "open_clip_model.safetensors")


def test_both_towers_and_the_scale_move(tuned):
    start, end = state(DEMO_CLIP), state(tuned[0])
    assert start.keys() == end.keys()
    for name in ("visual.conv1.weight", "visual.proj", "token_embedding.weight", "logit_scale"):
        assert not torch.equal(start[name].float(), end[name].float()), name


def test_classifier_is_the_prototypes_of_length_one(tuned, demo_clip):
    classifier, classnames = clips.load_classifier(tuned[0])
    assert classnames == CLASSNAMES
    torch.testing.assert_close(classifier.norm(dim=1), torch.ones(3))
    start = clips.class_embeddings(demo_clip, "a photo of a {} texture.", CLASSNAMES)
    cosines = (classifier * start).sum(dim=1)
    assert (cosines > 0.9).all()  # momentum: 4 steps of alpha 0.01
    assert (cosines < 1).all()


def test_history_has_a_row_a_step(tuned):
    table = pq.read_table(tuned[1]).to_pydict()
    assert table["step"] == [0, 1, 2, 3]
    assert table["epoch"] == [0, 0, 1, 1]
    assert table["lr"] == pytest.approx([Optimiser(**OPTIMISER).rate(s, 4) for s in range(4)])
    for a, b, loss in zip(
        table["loss_zero_shot"], table["loss_finetuned"], table["loss"], strict=True
    ):
        assert a + b == pytest.approx(loss, rel=1e-5)
    shares = zip(*(table[f"weight_{kind}"] for kind in ("class", "image", "group")), strict=True)
    assert [sum(share) for share in shares] == pytest.approx([1] * 4)
    assert table["prototype_drift"][0] == pytest.approx(0, abs=1e-6)
    assert table["prototype_drift"][3] > 0


def test_history_tells_settings_and_seed(tuned):
    metadata = pq.read_schema(tuned[1]).metadata
    assert json.loads(metadata[b"seed"]) == 3
    assert json.loads(metadata[b"settings"])["optimiser"] == OPTIMISER


def test_the_same_seed_gives_the_same_bytes(inputs, tuned):
    again = inputs.run("again")
    for name in ("open_clip_model.safetensors", clips.CLASSIFIER):
        assert (again[0] / name).read_bytes() == (tuned[0] / name).read_bytes()
    assert again[1].read_bytes() == tuned[1].read_bytes()


def test_another_seed_gives_another_model(inputs, tuned):
    other = inputs.run("other", seed=4)
    assert not torch.equal(state(other[0])["visual.proj"], state(tuned[0])["visual.proj"])


def test_scale_is_clamped(inputs):
    _, history = inputs.run("scale", lr=5.0, epochs=1, warmup_steps=0, batch_size=7)
    scale = pq.read_table(history)["logit_scale"][0].as_py()
    assert scale == pytest.approx(0) or scale == pytest.approx(math.log(100))


def test_flyp_trains_without_captions(inputs):
    model, history = inputs.run("flyp", "flyp", captions=False, epochs=1)
    table = pq.read_table(history).to_pydict()
    assert table["loss"] == table["loss_zero_shot"]
    assert table["loss_finetuned"] == [None, None]
    clip = clips.load(f"local-dir:{model}", None, torch.device("cpu"))
    torch.testing.assert_close(
        clips.load_classifier(model)[0],
        clips.class_embeddings(clip, "a photo of a {} texture.", CLASSNAMES),
        rtol=1e-4,
        atol=1e-5,
    )


def test_latteclip_without_descriptions_trains_without_captions(inputs):
    switches = {"image_description": False, "group_description": False}
    _, history = inputs.run("bare", switches=switches, captions=False, epochs=1)
    table = pq.read_table(history).to_pydict()
    assert table["weight_class"] == [1, 1]


def test_a_loss_that_explodes_stops_the_training_and_writes_nothing(inputs):
    with pytest.raises(UserError, match="The loss became nan at step"):
        inputs.run("explodes", lr=1e30, epochs=3, warmup_steps=0)
    assert list((inputs.folder / "explodes").glob("*")) == []


def test_an_unknown_objective_is_named(inputs):
    with pytest.raises(UserError, match="'flip' is none of"):
        inputs.run("unknown", "flip")


def test_captions_of_other_images_are_refused(inputs, tmp_path):
    other = Inputs(tmp_path)
    other.images = write_captions(tmp_path / "c.parquet", other.names[1:], ["x"] * 6)
    with pytest.raises(UserError, match="lacks 1 of 7"):
        other.run("out")


def test_a_dataset_without_training_images_is_refused(inputs, tmp_path):
    other = Inputs(tmp_path)
    files = [str(tmp_path / "test0.png")]
    other.index = write_index(tmp_path / "i.parquet", files, ["test"], [0], CLASSNAMES)
    with pytest.raises(UserError, match="no training image"):
        other.run("out")
