"""The votes that label_by_captions writes, by which classifiers are judged."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from support.tiny import DEMO_CLIP, write_captions

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.core import holdout, tables
from latteclip.labels import label_by_captions as stage
from latteclip.labels.features import feature_column
from latteclip.labels.fusion import fuse
from latteclip.labels.witnesses import Images, ScoreVotes

N, C, D = 210, 5, 24
SCALE = 20.0
IDS = [f"{i:03d}.png" for i in range(N)]
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

    @property
    def images(self):
        return Images.of(self.features.clone(), self.texts, SCALE)

    def votes(self):
        return ScoreVotes.of(self.options, self.scores, C)


def test_the_head_says_the_class_of_each_image_without_its_own_part():
    world = World(noisy=1.0)
    found = fuse(world.images, world.votes())
    head = world.images.classifier(found.weights, SCALE)
    differs = found.head != head.scores(world.features).argmax(1)
    assert differs.any()
    votes = world.votes().probabilities(differs)
    with_own_part, without = (
        votes.gather(1, labels[differs, None]).mean()
        for labels in (head.scores(world.features).argmax(1), found.head)
    )
    assert with_own_part > without  # it votes for itself


def test_a_vote_for_a_class_that_votes_name_too_often_says_less():
    """Captions name the class 0 for half of the images of every class."""
    world = World()
    often = torch.rand(N, generator=torch.Generator().manual_seed(5)) < 0.5
    world.scores[often] = 6 * F.one_hot(torch.zeros(int(often.sum()), dtype=torch.long), C).float()
    trust = fuse(world.images, world.votes()).trust
    one, other = trust.classes(torch.eye(C, dtype=torch.float64))[:2]
    assert trust.corroboration.found
    assert one[0] < other[1] - 0.1
    torch.testing.assert_close(one.sum().item(), 1.0)


# --- the stage -----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """Runs the stage on scores or captions; the table of VOTES."""
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

    def go(options=None, scores=None, captions=None):
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
        settings = stage.CaptionLabelSettings(MODEL, None, 64)
        stage.label_by_captions(files, settings, output, prototypes, votes, device="cpu", threads=1)
        return tables.read(votes, tables.VOTES)

    go.world, go.folder = world, tmp_path
    return go


def test_the_votes_of_all_images_are_written(run):
    table, described = run()
    assert table["image_id"].to_pylist() == IDS
    votes = run.world.votes()
    trust = fuse(run.world.images, votes).trust
    wanted = trust.classes(votes.probabilities(slice(0, N))).float()
    np.testing.assert_allclose(np.array(table["vote"].to_pylist()), wanted.numpy(), rtol=1e-5)
    assert described["votes"] == "class scores"
    assert described["corroborated"] is True
    assert described["told"] is False


def test_of_very_many_images_some_judge(run, monkeypatch):
    monkeypatch.setattr(holdout, "MOST", 50)
    table, _ = run()
    wanted = [IDS[i] for i in holdout.judging(IDS).nonzero()[0]]
    assert len(wanted) == 50
    assert table["image_id"].to_pylist() == wanted


def test_an_image_without_a_vote_does_not_judge(run):
    world = run.world
    options, scores = world.options.tolist(), world.scores.tolist()
    options[3], scores[3] = [], []
    table, _ = run(options=options, scores=scores)
    assert table["image_id"].to_pylist() == IDS[:3] + IDS[4:]


def test_captions_that_were_told_the_pseudo_labels_are_marked(run):
    path = write_captions(
        run.folder / "captions.parquet", IDS, [f"thing {i % 9}" for i in range(N)]
    )
    assert run(captions=path)[1]["told"] is False
    columns = tables.read(path, tables.CAPTIONS)[0].to_pydict()
    columns["prompt"] = [f"Describe the class {i % C}." for i in range(N)]
    tables.write(path, columns, tables.CAPTIONS)
    table, described = run(captions=path)
    assert described["told"] is True
    assert described["votes"] == "captions"
    assert len(table) == N
