"""Images that are held out have no part in what is learned, and their votes are kept."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from support.tiny import DEMO_CLIP, write_captions

from latteclip.clip.classifier import Classifier, load_classifier, save_classifier
from latteclip.core import holdout, tables
from latteclip.core.holdout import held_out
from latteclip.labels import label_by_captions as stage
from latteclip.labels.features import feature_column
from latteclip.labels.fusion import fuse
from latteclip.labels.witnesses import CaptionVotes, Images, ScoreVotes

N, C, D = 210, 5, 24
SCALE = 20.0
IDS = [f"{i:03d}.png" for i in range(N)]
SHARE = 0.2
MODEL = f"local-dir:{DEMO_CLIP}"


class World:
    """Images of C classes about centres, weak class texts, and options that are mostly right."""

    def __init__(self, seed=0, width=D, noisy=0.0):
        rng = torch.Generator().manual_seed(seed)

        def noise(*shape):
            return torch.randn(*shape, generator=rng)

        self.labels = torch.arange(N) % C
        centres = noise(C, width)
        self.features = F.normalize(centres[self.labels] + 0.9 * noise(N, width), dim=1)
        self.features = F.normalize(self.features + noisy * noise(N, width), dim=1)
        self.texts = F.normalize(centres + 1.5 * noise(C, width), dim=1)
        self.scores = F.one_hot(self.labels, C) * 2.0 + noise(N, C)
        self.options = torch.arange(C).expand(N, C).clone()
        self.learning = ~torch.from_numpy(held_out(IDS, SHARE))

    @property
    def images(self):
        return Images.of(self.features.clone(), self.texts, SCALE)

    def votes(self, scores=None):
        return ScoreVotes.of(
            self.options, self.scores if scores is None else scores, C, self.learning
        )


def spoilt(world):
    """Scores that say something else of the images that are held out."""
    scores = world.scores.clone()
    scores[~world.learning] = scores[~world.learning].roll(1, dims=1) - 3
    return scores


def test_votes_for_held_out_images_change_nothing_but_their_own_labels():
    world = World()
    one = fuse(world.images, world.votes(), world.learning)
    other = fuse(world.images, world.votes(spoilt(world)), world.learning)
    assert one.trust.corroboration.found
    assert torch.equal(one.labels[world.learning], other.labels[world.learning])
    assert not torch.equal(one.confidence, other.confidence)
    assert torch.equal(one.weights, other.weights)


def test_what_is_learned_is_what_the_other_images_alone_teach():
    world = World()
    images, votes, learning = world.images, world.votes(), world.learning
    alone = fuse(
        dataclasses.replace(images, centred=images.centred[learning]),
        dataclasses.replace(
            votes,
            has=votes.has[learning],
            options=votes.options[learning],
            scores=votes.scores[learning],
        ),
    )
    found = fuse(images, votes, learning)
    torch.testing.assert_close(found.weights, alone.weights)
    assert torch.equal(found.labels[learning], alone.labels)


def test_held_out_images_are_labelled_all_the_same():
    world = World()
    found = fuse(world.images, world.votes(), world.learning)
    right = (found.labels == world.labels)[~world.learning].double().mean()
    zero_shot = (found.said["zero_shot"] == world.labels)[~world.learning].double().mean()
    assert right > zero_shot + 0.1


def test_the_head_speaks_of_each_image_without_its_own_part():
    """Of a held-out image that is what it says anyway; of others, other prototypes say it."""
    world = World(noisy=0.3)
    found = fuse(world.images, world.votes(), world.learning)
    head = world.images.classifier(found.weights, SCALE)
    said = head.scores(world.features).argmax(1)
    assert torch.equal(found.head[~world.learning], said[~world.learning])
    differs = found.head != said
    assert differs.any()
    votes = world.votes().probabilities(differs)
    with_own_part, without = (
        votes.gather(1, labels[differs, None]).mean() for labels in (said, found.head)
    )
    assert with_own_part > without  # it votes for itself


def test_class_means_are_those_of_the_images_that_are_learned_from():
    world = World()
    rows = world.learning
    alone = ScoreVotes.of(world.options[rows], world.scores[rows], C)
    torch.testing.assert_close(
        world.votes().probabilities(rows), alone.probabilities(slice(0, int(rows.sum())))
    )
    texts = F.normalize(torch.randn(8, D, generator=torch.Generator().manual_seed(3)), dim=1)
    texts = torch.cat([texts, torch.zeros(1, D)])
    row_of = torch.arange(N) % 9
    found = CaptionVotes.of(texts, row_of, world.texts, SCALE, rows)
    alone = CaptionVotes.of(texts, row_of[rows], world.texts, SCALE)
    torch.testing.assert_close(
        found.probabilities(rows), alone.probabilities(slice(0, int(rows.sum())))
    )


# --- the stage -----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """Runs the stage on scores or captions; its three outputs."""
    world = World(width=128)
    names = [f"class {c}" for c in range(C)]
    images, pseudo_labels, embeddings, output, prototypes, votes = (
        str(tmp_path / name)
        for name in (
            *("images.parquet", "pseudo_labels.parquet", "class_embeddings.safetensors"),
            *("caption_labels.parquet", "prototypes.safetensors", "votes.parquet"),
        )
    )
    n = len(IDS)
    columns = {name: pa.nulls(n, tables.IMAGES.field(name).type) for name in tables.IMAGES.names}
    columns |= {"image_id": IDS, "path": IDS, "split": ["train"] * n}
    tables.write(images, columns, tables.IMAGES, {"classnames": names})
    columns = {"image_id": IDS, "split": ["train"] * n, "image_features": None}
    columns |= {
        name: pa.nulls(n, tables.PSEUDO_LABELS.field(name).type)
        for name in tables.PSEUDO_LABELS.names
        if name not in columns
    }
    columns["image_features"] = feature_column(world.features)
    tables.write(pseudo_labels, columns, tables.PSEUDO_LABELS)
    described = {"classnames": names, "model": MODEL, "pretrained": None, "logit_scale": SCALE}
    save_classifier(embeddings, Classifier.of(world.texts), described)

    def go(share=SHARE, options=None, scores=None, captions=None):
        if captions is None:
            file = str(tmp_path / "class_scores.parquet")
            table = {
                "image_id": IDS,
                "options": options or world.options.tolist(),
                "log_probabilities": scores or world.scores.tolist(),
                "none": pa.nulls(n, pa.float32()),
            }
            table |= {name: pa.nulls(n, pa.string()) for name in ("error", "digest")}
            tables.write(file, table, tables.CLASS_SCORES)
            files = stage.CaptionLabelFiles(images, pseudo_labels, embeddings, class_scores=file)
        else:
            files = stage.CaptionLabelFiles(images, pseudo_labels, embeddings, captions)
        settings = stage.CaptionLabelSettings(MODEL, None, 64, held_out=share)
        stage.label_by_captions(files, settings, output, prototypes, votes, device="cpu", threads=1)
        labels = tables.read(output, tables.CAPTION_LABELS)[0].to_pydict()
        return labels, load_classifier(prototypes)[0].weights, tables.read(votes, tables.VOTES)

    go.world, go.folder = world, tmp_path
    return go


def test_votes_are_kept_and_those_of_held_out_images_not_heard(run):
    labels, weights, (table, described) = run()
    world = run.world
    assert table["image_id"].to_pylist() == IDS
    wanted = world.votes().probabilities(slice(0, N)).float()
    np.testing.assert_allclose(np.array(table["vote"].to_pylist()), wanted.numpy(), rtol=1e-5)
    assert described["votes"] == "class scores"
    assert described["corroborated"] is True
    assert described["told"] is False
    assert len(labels["fused_label"]) == N
    again, same, (changed, _) = run(scores=spoilt(world).tolist())
    learned = zip(again["fused_label"], labels["fused_label"], world.learning, strict=True)
    assert all(one == other for one, other, learns in learned if learns)
    assert torch.equal(same, weights)
    assert changed["head"] == table["head"]
    apart = (~world.learning).tolist()
    pairs = zip(table["vote"].to_pylist(), changed["vote"].to_pylist(), strict=True)
    assert [one != other for one, other in pairs] == apart


def test_of_very_many_images_some_judge(run, monkeypatch):
    monkeypatch.setattr(holdout, "MOST", 50)
    _, _, (table, _) = run()
    wanted = [IDS[i] for i in holdout.judging(IDS).nonzero()[0]]
    assert len(wanted) == 50
    assert table["image_id"].to_pylist() == wanted


def test_an_image_without_a_vote_does_not_judge(run):
    world = run.world
    options, scores = world.options.tolist(), world.scores.tolist()
    options[3], scores[3] = [], []
    _, _, (table, _) = run(options=options, scores=scores)
    assert table["image_id"].to_pylist() == IDS[:3] + IDS[4:]


def test_captions_that_were_told_the_pseudo_labels_are_marked(run):
    path = write_captions(
        run.folder / "captions.parquet", IDS, [f"thing {i % 9}" for i in range(N)]
    )
    assert run(captions=path)[2][1]["told"] is False
    columns = tables.read(path, tables.CAPTIONS)[0].to_pydict()
    columns["prompt"] = [f"Describe the class {i % C}." for i in range(N)]
    tables.write(path, columns, tables.CAPTIONS)
    _, _, (table, described) = run(captions=path)
    assert described["told"] is True
    assert described["votes"] == "captions"
    assert len(table) == N
