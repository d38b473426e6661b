import pyarrow as pa
import pytest
from support.tiny import write_captions, write_pseudo_labels

from latteclip.cli import main
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.show import command, show

CLASSNAMES = ["red dots", "blue", "grey"]
METADATA = {
    "classnames": CLASSNAMES,
    "model": "some/model",
    "votes": "captions",
    "voting": 8,
    "agreement": 0.75,
    "corroborated": True,
    "corroboration": {"images": 9.0, "zero_shot": 8.0, "p_value": 0.001},
    "weights": {"zero_shot": 0.81, "images": 1.32, "texts": 0.4},
    "rate": 0.5,
    "independent": 0.9375,
    "gains": {"both": 0.66, "zero_shot": 0.21, "images": 0.55},
    "changed": 2,
}
# image: zero-shot, calibrated, images, caption, fused
LABELS = {
    "a.png": (0, 0, 0, 0, 0),
    "b.png": (0, 1, 1, 1, 1),
    "c.png": (0, 0, 1, 0, 0),
    "d.png": (1, 1, 1, 1, 1),
    "e.png": (1, 1, 0, 0, 0),
    "f.png": (2, 2, 2, 2, 2),
    "g.png": (1, 1, 1, 2, 1),
    "h.png": (0, 0, 0, 0, 2),
    "i.png": (2, 2, 2, None, 2),
}


class Labelled:
    """The files of a dataset in which some labels changed."""

    def __init__(self, folder):
        self.folder, self.metadata, self.columns = folder, dict(METADATA), {}

    def show(self, n=3, image_ids=()):
        """What is shown of the files, which are written first."""
        names = list(LABELS)
        zero_shot, calibrated, images, captions, fused = zip(*LABELS.values(), strict=True)
        said = [caption is not None for caption in captions]
        n_images = len(names)
        columns = {
            "image_id": names,
            "calibrated_label": calibrated,
            "image_label": images,
            "caption_label": [
                own if own is not None else other
                for own, other in zip(captions, calibrated, strict=True)
            ],
            "caption_confidence": [0.75 if has else 0.0 for has in said],
            "lmm_label": pa.nulls(n_images, pa.int32()),
            "lmm_confidence": pa.nulls(n_images, pa.float32()),
            "fused_label": fused,
            "fused_confidence": [0.9] * n_images,
        }
        tables.write(
            self.folder / "caption_labels.parquet",
            columns | self.columns,
            tables.CAPTION_LABELS,
            self.metadata,
        )
        write_pseudo_labels(self.folder / "pseudo_labels.parquet", names[::-1], zero_shot[::-1])
        return command(["show", str(self.folder)], n, image_ids)


@pytest.fixture
def labelled(tmp_path):
    return Labelled(tmp_path)


def shown(text):
    """The ids of the images, in the order in which they are shown."""
    return [block.split("\n")[0] for block in text.split("\n\n")[1:]]


def unwrapped(text):
    return " ".join(text.split())


def test_the_summary_says_who_counts_and_how_much(labelled):
    text = unwrapped(labelled.show(0))
    for sentence in (
        "9 training images, 3 classes, CLIP some/model",
        "votes: captions speak for a class of 8 of 9 images. 75% of these votes",
        "captions count: they fit the looks of the images",
        "(p-value 0.001)",
        "zero-shot scores make it 1.23 times as likely",
        "image prototypes 1.73 times, both together 1.93 times",
        "zero-shot scores 0.81, image prototypes 1.32, prototypes of captions 0.40",
        "predict 50% of the votes",
        "count 0.94 times",
        "labels: 3 of 9 are not the zero-shot ones, 2 not the calibrated ones.",
    ):
        assert sentence in text
    assert shown(labelled.show(0)) == []


def test_votes_that_do_not_count_are_said_not_to(labelled):
    labelled.metadata |= {"corroborated": False, "gains": {}, "rate": 0.0, "changed": 0}
    labelled.metadata["corroboration"] = {"images": 0.1, "zero_shot": -0.2, "p_value": 0.412}
    labelled.columns["image_label"] = pa.nulls(len(LABELS), pa.int32())
    text = labelled.show(2)
    assert "captions do not count: in random order they fit" in unwrapped(text)
    assert "(p-value 0.412). So the labels are the calibrated" in unwrapped(text)
    assert "predict" not in text
    assert "(those that look alike)" not in text


def test_each_witness_of_an_image_is_shown(labelled):
    captions = ["So blue. " * 20, "a grey wall"]
    (labelled.folder / "captions").mkdir()
    write_captions(labelled.folder / "captions" / "images.parquet", ["b.png", "x.png"], captions)
    text = labelled.show(image_ids=["b.png", "i.png"])
    block = text.split("\n\n")[1]
    wanted = ["red dots", "blue", "blue (those that look alike)", "blue (0.75)", "blue (0.90)"]
    titles = ["zero-shot", "calibrated", "images", "caption", "fused"]
    for title, said in zip(titles, wanted, strict=True):
        assert f"  {title:<11} {said}\n" in f"{block}\n"
    assert unwrapped(captions[0]) in unwrapped(block)
    assert "a grey wall" not in text
    assert "caption     says nothing" in text.split("\n\n")[2]
    assert "LMM" not in text
    assert max(map(len, text.split("\n"))) <= 100 + len(str(labelled.folder))


def test_an_lmm_that_votes_beside_captions_that_do_not(labelled):
    labelled.metadata["votes"] = "class scores"
    labelled.columns["lmm_label"] = [1] * len(LABELS)
    labelled.columns["lmm_confidence"] = [0.5] * len(LABELS)
    text = labelled.show(image_ids=["b.png"])
    assert "caption     blue (0.75), does not vote\n" in text
    assert "LMM         blue (0.50)\n" in text
    assert "class scores count" in text
    assert "prototypes of captions" not in text


def test_images_of_all_kinds_are_shown(labelled):
    # Changed: b, e, h. Disputed: c, g. Undisputed: a, d, f, i.
    assert shown(labelled.show(1)) == ["b.png"]
    assert shown(labelled.show(3)) == ["a.png", "b.png", "c.png"]
    assert shown(labelled.show(6)) == ["a.png", "b.png", "c.png", "e.png", "f.png", "g.png"]
    assert shown(labelled.show(8)) == [name for name in LABELS if name != "i.png"]
    assert shown(labelled.show(99)) == list(LABELS)
    assert labelled.show(4) == labelled.show(4)


def test_images_by_name_are_shown_in_the_order_asked_for(labelled):
    assert shown(labelled.show(1, ["i.png", "a.png"])) == ["i.png", "a.png"]
    with pytest.raises(UserError, match=r"has no image 'z\.png'; its 9 .* such as 'a\.png'"):
        labelled.show(1, ["a.png", "z.png"])


@pytest.mark.parametrize("words", [["show"], ["list", "x"], [], ["show", "x", "y"]])
def test_other_words_are_one_sentence(words):
    with pytest.raises(UserError, match="Say: latteclip labels show results/<dataset>"):
        command(words, 5, [])


def test_files_that_are_missing_or_foreign_are_one_sentence(labelled, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/caption_labels\.parquet does not exist; run"):
        show(str(tmp_path / "nowhere"), 5)
    with pytest.raises(UserError, match="no method of this dataset was run that learns from"):
        show(str(tmp_path), 5)
    labelled.show()
    (tmp_path / "pseudo_labels.parquet").unlink()
    with pytest.raises(UserError, match=r"pseudo_labels\.parquet does not exist"):
        show(str(tmp_path), 5)
    del labelled.metadata["rate"]
    with pytest.raises(UserError, match=r"does not say rate; delete it and rerun"):
        labelled.show()
    (tmp_path / "caption_labels.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a valid Parquet file"):
        show(str(tmp_path), 5)
    write_pseudo_labels(tmp_path / "caption_labels.parquet", ["a"], [0])
    with pytest.raises(UserError, match="lacks the columns"):
        show(str(tmp_path), 5)


def test_the_command_prints_it(labelled, capsys):
    text = labelled.show(2)
    assert main.main(["labels", "show", str(labelled.folder), "-n", "2"]) == 0
    assert capsys.readouterr().out == f"{text}\n"
    named = ["--image", "a.png", "--image", "b.png"]
    assert main.main(["labels", "show", str(labelled.folder), *named]) == 0
    assert shown(capsys.readouterr().out.rstrip("\n")) == ["a.png", "b.png"]
