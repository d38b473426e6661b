"""Votes of a user's file, of another CLIP, of captions and of class scores."""

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from support.tiny import DEMO_CLIP, write_captions, write_class_scores, write_index

from latteclip.clip import encode
from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config.keys import ClipSection
from latteclip.core.errors import UserError
from latteclip.labels.label_inputs import read_votes
from latteclip.labels.write_votes import OPTIONS, VotesSettings, write_votes

CLASSNAMES = ["striped", "dotted", "woven"]
WRITTEN = {"striped": "Striped Cloth"}
NAMES = [f"{number}.png" for number in range(6)]
SPLITS = ["train", "train", "val", "train", "train", "test"]
TRAINING = NAMES[:5]
CLIP = ClipSection(model=f"local-dir:{DEMO_CLIP}", pretrained=None)


@pytest.fixture
def index(tmp_path):
    """Writes the index of six images."""

    def write(classnames=CLASSNAMES):
        path = tmp_path / "images.parquet"
        written = WRITTEN if classnames is CLASSNAMES else {}
        return write_index(path, NAMES, SPLITS, [None] * 6, classnames, written)

    return write


@pytest.fixture
def written(tmp_path, index):
    """Writes the votes of a file with some columns, and reads the table."""

    def write(columns, suffix="csv", classnames=CLASSNAMES):
        path = tmp_path / f"mine.{suffix}"
        table = pd.DataFrame(columns)
        if suffix == "csv":
            table = table.map(lambda x: json.dumps(x) if isinstance(x, list) else x)
            table.to_csv(path, index=False)
        elif suffix == "jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            table.to_parquet(path)
        settings = VotesSettings(name="mine", kind="file", file=str(path))
        output = str(tmp_path / "votes.parquet")
        write_votes(index(classnames), settings, output, device="cpu", threads=1)
        return dense(output, len(classnames))

    return write


def read(path, **options):
    return read_votes(path, pa.chunked_array([TRAINING], pa.string()), **options)


def dense(path, n_classes=3, **options):
    """The votes of a table as probabilities [N, C]."""
    return read(path, **options).dense(slice(None), n_classes)


# --- a user's file -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_classes_are_names_or_numbers_and_empty_cells_are_silent(written, suffix):
    classes = [" DOTTED ", "Striped Cloth", "", "2", "striped"]
    votes = written(of(classes), suffix)
    assert votes.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_columns_may_have_the_names_that_answers_have(written):
    votes = written({"File": TRAINING, "Label": ["woven"] * 5})
    assert votes.argmax(axis=1).tolist() == [2] * 5


def test_names_win_over_numbers_of_classes(written):
    """Classes called by numbers are named alike in CSV and JSON, and have no numbers."""
    classnames = ["2", "1", "10"]
    for suffix in ("csv", "jsonl", "parquet"):
        votes = written(of(["2", "1", "10", "2", "1"]), suffix, classnames)
        assert votes.argmax(axis=1).tolist() == [0, 1, 2, 0, 1]
    for suffix in ("jsonl", "parquet"):
        with pytest.raises(UserError, match=r"0\.png.*text"):
            written(of([2, 1, 10, 2, 1]), suffix, classnames)
        votes = written(of([0, 1, 2, 0, 1]), suffix)
        assert votes.argmax(axis=1).tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("scale", [1, 0.5])  # of the best classes alone
def test_probabilities_are_of_options_or_of_all_classes(written, suffix, scale):
    """A file may have rows about some of the images."""
    shares = scale * np.array([0, 0.75, 0.25])
    wanted = [[0, 0.75, 0.25]] * 3 + [[0, 0, 0]] * 2
    ids, options = {"image_id": TRAINING[:3]}, {"options": [["woven", "dotted"]] * 3}
    for columns in (
        {"probabilities": [shares.tolist()] * 3},
        options | {"probabilities": [[shares[2], shares[1]]] * 3},
        options | {"log_probabilities": [np.log([shares[2], shares[1]]).tolist()] * 3},
    ):
        np.testing.assert_allclose(written(ids | columns, suffix), wanted, atol=1e-6)


def of(classes=None, ids=TRAINING, **columns):
    """The columns of a file with classes of its images, "dotted" by default."""
    return {"image_id": ids, "class": classes or ["dotted"] * len(ids), **columns}


def last(values, column="probabilities", options=("woven", "dotted")):
    """The columns of a file whose last image has other values."""
    good = [0.5, 0.5] if column == "probabilities" else [-1, -1]
    lists = [good] * 4 + [values]
    return {"image_id": TRAINING, "options": [list(options)] * 5, column: lists}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (of(["dotted"] * 4 + ["cat"]), r"4\.png.*'cat'"),
        (of(["dotted"] * 4 + ["3"]), r"4\.png.*'3'"),
        (of([""] * 5), "labeller mine"),
        (of(ids=[*TRAINING, "0.png"]), r"'0\.png'"),
        ({"image_id": TRAINING, "labels": [0] * 5}, "image_id, labels"),
        ({"class": ["dotted"] * 5}, "image_id"),
        *(
            (last(values), r"4\.png")
            for values in (
                [1.5, -0.5],
                [math.nan, 1.0],
                [1.0, 2.0],
                [1.0],
                "a",
                [10**400, 0],
            )
        ),
        *(
            (last(values, "log_probabilities"), r"4\.png")
            for values in ([1e9, 0], [math.nan, -1], [-math.inf, -math.inf], [-1])
        ),
        (last([0.5, 0.5], options=("woven", "woven")), r"0\.png"),
        ({"image_id": TRAINING, "probabilities": [[0.5, 0.5]] * 5}, r"0\.png"),
    ],
)
def test_a_file_that_cannot_vote_is_one_sentence(written, columns, message):
    with pytest.raises(UserError, match=message) as caught:
        written(columns)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- CLIP and captions ---------------------------------------------------------------------------


@pytest.fixture
def captioned(tmp_path, index, demo_clip):
    """Writes the votes of captions, and returns them with the probabilities they should have."""
    width = demo_clip.config["embed_dim"]
    classes = F.normalize(
        torch.randn(OPTIONS + 4, width, generator=torch.Generator().manual_seed(0)), dim=1
    )
    names = [f"class {number}" for number in range(OPTIONS + 4)]
    texts = str(tmp_path / "w.safetensors")
    described = {"classnames": names, "logit_scale": 20.0}
    save_classifier(texts, Classifier.of(classes), described)

    def write(captions):
        path = tmp_path / "captions.parquet"
        write_captions(path, TRAINING, captions)
        settings = VotesSettings(name="words", kind="captions", captions=CLIP)
        output = str(tmp_path / "votes.parquet")
        files = {"captions_path": str(path), "class_embeddings_path": texts}
        write_votes(index(names), settings, output, **files, device="cpu", threads=1)
        return output

    @torch.no_grad()
    def wanted(captions):
        """Each caption encoded alone, the mean of all off, and scored like an image."""
        features = [
            F.normalize(demo_clip.model.encode_text(demo_clip.tokenizer([text]))[0], dim=0)
            for text in captions
        ]
        centred = torch.stack(features) - torch.stack(features).mean(dim=0)
        return (20.0 * centred @ classes.T).softmax(dim=1).numpy()

    return write, wanted


def test_captions_are_scored_like_images(captioned, monkeypatch):
    write, wanted = captioned
    monkeypatch.setattr(encode, "BATCH", 3)
    captions = ["a dot.", " a dot.  ", "a grid.", "a stripe, wide.", "cracks"]
    votes = read(write(captions))
    found = np.zeros((5, OPTIONS + 4))
    np.put_along_axis(found, votes.options, votes.shares, axis=1)
    every = wanted([text.strip() for text in captions])
    least = np.sort(every, axis=1)[:, -OPTIONS, None]
    some = np.where(every >= least, every, 0)
    np.testing.assert_allclose(found, some / some.sum(axis=1, keepdims=True), atol=1e-4)


def test_an_empty_caption_votes_for_nothing(captioned):
    write, _ = captioned
    votes = read(write(["", "  ", None, "a dot.", "a grid."]))
    assert (votes.first >= 0).tolist() == [False] * 3 + [True] * 2


# --- class scores --------------------------------------------------------------------------------


def test_votes_are_normalised_over_the_options_of_an_image(tmp_path):
    logs = [[-1.0, -1.0 - math.log(3)], [], [-math.inf, -7.0], [0.0], [-2.0, -2.0]]
    options = [[2, 0], [], [0, 1], [1], [1, 0]]
    path = write_class_scores(tmp_path / "s.parquet", TRAINING, options, logs)
    wanted = [[0.25, 0, 0.75], [0, 0, 0], [0, 1, 0], [0, 1, 0], [0.5, 0.5, 0]]
    np.testing.assert_allclose(dense(path), wanted, atol=1e-6)
    assert read(path).first.tolist() == [2, -1, 1, 1, 1]


def test_how_common_an_answer_is_does_not_count_in_likelihoods(tmp_path):
    """The first class is likelier by 2 for every image, whatever it shows."""
    shown = np.array([[0, -1, -1], [-1, 0, -1], [-1, -1, 0], [0, -1, -1], [-1, 0, -1]])
    path = tmp_path / "s.parquet"
    logs = (shown + np.array([-1.0, -3, -3])).tolist()
    write_class_scores(path, TRAINING, [[0, 1, 2]] * 5, logs)
    assert dense(str(path)).argmax(axis=1).tolist() == [0] * 5
    found = dense(str(path), without_bias=True).argmax(axis=1)
    assert found.tolist() == shown.argmax(axis=1).tolist()
