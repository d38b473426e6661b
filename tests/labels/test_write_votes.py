"""Votes of a user's file and of another CLIP: what is read, and what is refused."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from support.tiny import DEMO_CLIP, write_index, write_pictures

from latteclip.config.sections.class_texts import ClassTextsSection
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.class_scores import read_class_scores
from latteclip.labels.label_sources import option_votes
from latteclip.labels.own_votes import VotesSettings
from latteclip.labels.pseudo_label_images import pseudo_label_images
from latteclip.labels.voters import file, zero_shot
from latteclip.labels.voters.base import FusionSettings, VotedImages
from latteclip.labels.write_votes import write_votes
from latteclip.labels.zero_shot import ZeroShotSettings

CLASSNAMES = ["striped", "dotted", "woven"]
WRITTEN = {"striped": "Striped Cloth"}
NAMES = [f"{number}.png" for number in range(6)]
SPLITS = ["train", "train", "val", "train", "train", "test"]
TRAINING = NAMES[:5]


@pytest.fixture
def written(tmp_path):
    """Writes the votes of a file with some columns, and reads the table."""
    index = write_index(
        tmp_path / "images.parquet", NAMES, SPLITS, [None] * 6, CLASSNAMES, WRITTEN
    )

    def write(columns, suffix="csv", **settings):
        path = tmp_path / f"mine.{suffix}"
        table = pd.DataFrame(columns)
        if suffix == "csv":
            table = table.map(lambda x: json.dumps(x) if isinstance(x, list) else x)
            table.to_csv(path, index=False)
        elif suffix == "jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            table.to_parquet(path)
        settings = VotesSettings(name="mine", kind="file", file=str(path), **settings)
        output = str(tmp_path / "votes.parquet")
        write_votes(index, settings, output, device="cpu", threads=1)
        return read(output)

    return write


def ids(names=TRAINING):
    return pa.chunked_array([names], pa.string())


def read(path):
    options, scores = read_class_scores(path, ids())
    return option_votes(options, scores, len(CLASSNAMES))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_classes_are_names_or_numbers_and_empty_cells_are_silent(written, suffix):
    classes = ["dotted", "Striped Cloth", "", "2", "striped"]
    votes = written({"image_id": TRAINING, "class": classes}, suffix)
    assert votes.has.tolist() == [True, True, False, True, True]
    wanted = torch.zeros(5, 3, dtype=torch.float64)
    wanted[[0, 1, 3, 4], [1, 0, 2, 0]] = 1
    torch.testing.assert_close(votes.probabilities(slice(None)), wanted)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("logs", [False, True])
def test_options_have_probabilities_or_their_logarithms(written, suffix, logs):
    shares = [[0.25, 0.75]] * 5
    values = [np.log(row).tolist() for row in shares] if logs else shares
    columns = {"image_id": [*TRAINING[::-1]], "options": [["woven", "dotted"]] * 5}
    columns["log_probabilities" if logs else "probabilities"] = values
    votes = written(columns, suffix)
    row = torch.tensor([[0, 0.75, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(
        votes.probabilities(slice(None)), row.expand(5, 3), atol=1e-6, rtol=0
    )


def test_probabilities_of_all_classes_need_no_options(written):
    votes = written({"image_id": TRAINING, "probabilities": [[0.5, 0.5, 0]] * 5}, "jsonl")
    assert votes.probabilities(slice(None))[0].tolist() == pytest.approx([0.5, 0.5, 0])


GOOD = {"image_id": TRAINING, "class": ["dotted"] * 5}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({**GOOD, "class": ["dotted"] * 4 + ["cat"]}, r"4\.png.*'cat' is no class"),
        ({**GOOD, "class": ["dotted"] * 4 + ["3"]}, r"4\.png.*'3' is no class"),
        (
            {"image_id": [*TRAINING, "0.png"], "class": ["dotted"] * 5 + ["woven"]},
            r"two rows for '0\.png'",
        ),
        (
            {"image_id": TRAINING[:3], "class": ["dotted"] * 3},
            r"3 of 5 images.*'3\.png'.*share of the voter to 0\.6",
        ),
        ({"image_id": TRAINING, "label": [0] * 5}, "has no votes"),
        ({"class": ["dotted"] * 5}, "lacks the columns.*image_id"),
        ({**GOOD, "class": [""] * 5}, "voter mine has no vote about any image"),
        *(
            (
                {
                    "image_id": TRAINING,
                    "options": [["woven", "dotted"]] * 5,
                    "probabilities": [[0.5, 0.5]] * 4 + [values],
                },
                rf"4\.png.*{message}",
            )
            for values, message in [
                ([1.5, -0.5], "negative"),
                ([float("nan"), 1.0], "no number"),
                ([1.0, 2.0], "sum to 3"),
                ([1.0], "2 classes and 1 probabilities"),
                ("a", "they are no"),
            ]
        ),
        (
            {"image_id": TRAINING, "probabilities": [[0.5, 0.5]] * 5},
            r"0\.png.*3 classes and 2 probabilities",
        ),
        (
            {
                "image_id": TRAINING,
                "options": [["woven", "woven"]] * 5,
                "log_probabilities": [[0, -1]] * 5,
            },
            r"0\.png.*twice",
        ),
    ],
)
def test_a_file_that_cannot_vote_is_one_sentence(written, columns, message):
    with pytest.raises(UserError, match=message) as caught:
        written(columns)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_few_images_votes_with_its_share(written):
    votes = written({"image_id": TRAINING[:3], "class": ["dotted"] * 3}, share=0.6)
    assert votes.has.tolist() == [True, True, True, False, False]


def test_another_clip_votes_as_its_pseudo_labels_say(tmp_path):
    files = write_pictures(tmp_path / "pictures", 6)
    index = write_index(tmp_path / "images.parquet", files, SPLITS, [None] * 6, CLASSNAMES)
    settings = ZeroShotSettings(
        clip=ClipSection(model=f"local-dir:{DEMO_CLIP}", pretrained=None),
        class_texts=ClassTextsSection(template="a photo of a {} texture."),
        inference=InferenceSection(batch_size=3),
    )
    outputs = [str(tmp_path / name) for name in ("labels.parquet", "w.safetensors")]
    pseudo_label_images(index, settings, *outputs, device="cpu", threads=1)
    path = str(tmp_path / "votes.parquet")
    voter = VotesSettings(name="other", kind="zero_shot", zero_shot=settings)
    write_votes(index, voter, path, device="cpu", threads=1)
    names = tables.read(path, tables.CLASS_SCORES)["image_id"]
    table = tables.read(outputs[0], tables.PSEUDO_LABELS).to_pydict()
    training = [row for row, split in enumerate(SPLITS) if split != "test"]
    assert names.to_pylist() == [table["image_id"][row] for row in training]
    voted = VotedImages(
        names, None, torch.zeros(3, 2), 1.0, FusionSettings, device="cpu", threads=1
    )
    ballot = zero_shot.vote(path, voted)
    assert ballot.title == "other"
    assert ballot.labels.tolist() == [table["pseudo_label"][row] for row in training]
    confidence = [table["confidence"][row] for row in training]
    np.testing.assert_allclose(ballot.confidence, confidence, atol=1e-6)
    assert file.vote(path, voted).votes.has.all()
