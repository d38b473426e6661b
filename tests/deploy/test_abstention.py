import csv
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import records
from support.tiny import DEMO_CLIP, write_index, write_pictures

from latteclip.cli import main
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.clip.encode import encode_files
from latteclip.clip.ood import UnknownDetector
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.metadata import ClassesMetadata
from latteclip.deploy import predict
from latteclip.labels.fusion_report import NAME, Check, PersonAnswers, write_fusion_report
from latteclip.labels.guarantees import fewest_answers, pac_threshold

CLASSNAMES = ["a", "b", "c"]
N, ERROR = 24, 0.3


class Results:
    """A dataset's results with a training and a person's answers about all but four images."""

    def __init__(self, folder, clip):
        self.folder, self.model = folder, folder / "flyp" / "seed0" / "model"
        self.pictures = write_pictures(folder / "pictures", N)
        self.ids = [path.rpartition("/")[2] for path in self.pictures]
        write_index(
            folder / "images.parquet", self.pictures, ["train"] * N, [None] * N, CLASSNAMES
        )
        draw = torch.Generator().manual_seed(0)
        self.head = Classifier.of(torch.randn(3, 128, generator=draw) / 9)
        clips.save(clip, self.head, CLASSNAMES, "a {}.", self.model)
        self.train(drawn=self.ids[:20])
        self.predicted = self.classifier()(self.pictures)
        self.right = np.arange(N) % 5 > 0
        self.answer(20)
        features = encode_files(clip, self.pictures, 8, 1)
        texts = torch.nn.functional.normalize(torch.randn(3, 128, generator=draw), dim=1)
        described = {"classnames": CLASSNAMES, "model": f"local-dir:{DEMO_CLIP}"}
        self.detector, scores = UnknownDetector.learn(
            features,
            torch.ones(N, dtype=torch.bool),
            texts,
            0.3,
            {**described, "pretrained": None},
        )
        self.detector.save(folder / predict.DETECTOR)
        self.unknown_scores = scores.tolist()

    def train(self, held_out: Sequence[str] = (), **metadata):
        run = self.model.parent
        schema = pa.schema([("step", pa.int32())])
        metadata = records.training_metadata(**metadata)
        tables.write(run / "history.parquet", {"step": [1]}, schema, metadata)
        columns = {"image_id": held_out, "prediction": [0] * len(held_out)}
        columns["held_out"] = [True] * len(held_out)
        classes = ClassesMetadata(CLASSNAMES)
        tables.write(
            run / "train_predictions.parquet", columns, tables.TRAIN_PREDICTIONS, classes
        )

    def answer(self, n, **heads):
        """A person answers about the first n images at random, and about three of the others."""
        names = [
            one.classname if own else None
            for one, own in zip(self.predicted, self.right, strict=True)
        ]
        images = dict(zip([*self.ids[:n], *self.ids[-3:]], names, strict=False))
        answers = PersonAnswers(images, records.checked(self.ids[:n], classifiers=heads))
        write_fusion_report(self.folder / NAME, records.fusion(answers=answers))

    def classifier(self, **options):
        return predict.Predictor(self.model, device="cpu", threads=1, **options)

    def threshold(self, rows):
        confidence = np.array([one.probability for one in self.predicted])
        return pac_threshold(confidence[rows], ~self.right[rows], ERROR)


@pytest.fixture
def results(tmp_path, demo_clip):
    return Results(tmp_path / "results" / "mine", demo_clip)


def test_uncertain_and_unknown_images_are_marked_in_every_format(results, tmp_path, capsys):
    threshold = results.threshold(slice(20))
    flags = {
        "abstained": [one.probability < threshold for one in results.predicted],
        "is_unknown": [
            score > results.detector.threshold for score in results.unknown_scores
        ],
    }
    assert all(0 < sum(column) < N for column in flags.values())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    words = [*results.pictures[:4], tmp_path / "broken.png", *results.pictures[4:]]
    for name, options in (("plain", []), ("out", ["--unknown", "--abstain", ERROR])):
        for suffix in ("csv", "jsonl", "parquet"):
            output = [
                "--output",
                tmp_path / f"{name}.{suffix}",
                "--threads",
                1,
                "--batch-size",
                5,
            ]
            arguments = ["predict", results.model, *words, *options, *output]
            assert main.main([*map(str, arguments)]) == 3  # an image was left out
    printed = capsys.readouterr().err
    assert "20 answers" in printed and f"{threshold:.4f}" in printed
    table, plain = (
        pq.read_table(tmp_path / f"{name}.parquet") for name in ("out", "plain")
    )
    assert table.drop_columns(["unknown_score", *flags]).equals(plain)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    for found in (table.to_pylist(), [json.loads(line) for line in lines], rows):
        for name, column in flags.items():
            assert [str(row[name]).lower() for row in found] == [
                str(m).lower() for m in column
            ]
        scores = [float(row["unknown_score"]) for row in found]
        assert scores == pytest.approx(results.unknown_scores, abs=1e-5)


def test_only_images_that_the_model_was_not_trained_on_count(results):
    results.train(drawn=results.ids[:12])
    assert results.classifier(abstain=ERROR).threshold == results.threshold(slice(12))
    results.train(held_out=results.ids[8:])  # of them 12 have an answer at random
    found = results.classifier(abstain=ERROR).threshold
    assert found == results.threshold(slice(8, 20))
    results.train(
        held_out=results.ids[8:], averaged=3
    )  # another training learned from them
    with pytest.raises(UserError, match="0 among 20"):
        results.classifier(abstain=ERROR)


def test_a_classifier_that_answers_made_is_judged_without_them(results, caplog):
    caplog.set_level("INFO")
    (results.model.parent / "history.parquet").unlink()
    place = results.folder / "classifiers" / "image_prototypes.safetensors"
    save_classifier(place, results.head, {"classnames": CLASSNAMES})
    confidence, right = np.linspace(0.1, 0.9, 15), [False, *[True] * 14]
    head = Check(confidence.tolist(), right)
    results.answer(15, image_prototypes=head)
    found = results.classifier(abstain=ERROR).threshold
    assert found == pac_threshold(confidence, ~np.array(right), ERROR)
    assert "five folds" in caplog.text


def refused(results, share, capsys):
    """What is printed where a guarantee is refused."""
    output = results.folder / "out.csv"
    arguments = [results.model, results.pictures[0], "--abstain", share, "-o", output]
    assert main.main(["predict", *map(str, arguments)]) == 2
    assert not output.exists()
    return capsys.readouterr().err


def test_too_few_answers_say_how_many_it_takes(results, capsys):
    results.answer(5)
    (results.model.parent / "history.parquet").unlink()
    printed = refused(results, ERROR, capsys)
    assert "9 answers" in printed and "5 among 5" in printed and "--budget 18" in printed
    results.train(held_out=results.ids[:12])  # half of the images that will be drawn
    assert "--budget 36" in refused(results, ERROR, capsys)


@pytest.mark.parametrize("share", ["0.05", "1e-310"])
def test_a_guarantee_that_no_number_of_answers_gives_says_what_is_in_reach(
    results, share, capsys
):
    results.train(held_out=results.ids[:12])
    printed = refused(results, share, capsys)
    assert (
        "out of reach" in printed and "at most 12," in printed and "--budget" not in printed
    )
    assert fewest_answers(0.23) <= 12 and "guarantee of 0.23." in printed
    results.train(labels="fused")  # which learned from all 20, more than a tenth
    printed = refused(results, share, capsys)
    assert "at most 0," in printed and "20 answers, which allow 0.14" in printed


@pytest.mark.parametrize("option", [{"abstain": ERROR}, {"unknown": True}])
def test_what_was_learned_of_a_dataset_needs_its_results(results, option, tmp_path):
    results.model.rename(tmp_path / "exported")
    with pytest.raises(UserError, match=f"--{next(iter(option))}"):
        predict.Predictor(tmp_path / "exported", device="cpu", threads=1, **option)


# --- rolled up to groups of classes --------------------------------------------------------------

GROUPS = {"a": "first", "b": "first"}


def rolled_up(results, threshold):
    """What `rolled_up` must be: the group of a and b, or one of the classes."""
    found = []
    for one in results.classifier()(results.pictures, topk=3):
        shares = dict(zip(one.topk_classnames, one.topk_probabilities, strict=True))
        both = shares["a"] + shares["b"]
        group = ("first", both) if both > shares["c"] else ("c", shares["c"])
        inside = max((shares[name], name) for name in "ab")
        if group[0] == "first" and inside[0] >= threshold:
            group = inside[::-1]
        found.append(group if group[1] >= threshold else (None, None))
    return found


def test_the_finest_group_that_keeps_the_promise_is_in_every_format(
    results, tmp_path, caplog
):
    results.train(drawn=results.ids[:20])
    groups = tmp_path / "groups.csv"
    groups.write_text("class,group\na,first\nb,first\n")
    classifier = results.classifier(roll_up=ERROR, groups=groups)
    confidence, wrong = [], []
    for row, one in enumerate(results.classifier()(results.pictures[:20], topk=3)):
        # An answer that names the predicted class is right by any group, another one by none.
        shares = dict(zip(one.topk_classnames, one.topk_probabilities, strict=True))
        confidence.append(max(shares["a"] + shares["b"], shares["c"]))
        wrong.append(not results.right[row])
    expected = pac_threshold(np.array(confidence), np.array(wrong), ERROR)
    assert classifier.roll_up_threshold == pytest.approx(expected)
    wanted = rolled_up(results, classifier.roll_up_threshold)
    assert len({name for name, _ in wanted}) > 1
    found = classifier(results.pictures)
    assert [one.rolled_up for one in found] == [name for name, _ in wanted]
    (tmp_path / "semicolons.csv").write_text("\ufeffclass;group\na;first\nb;first\n")
    (tmp_path / "groups.yaml").write_text("first: [a, b]\n")
    files = {"csv": "groups.csv", "jsonl": "semicolons.csv", "parquet": "groups.yaml"}
    for suffix, file in files.items():
        output = tmp_path / f"out.{suffix}"
        words = ["predict", results.model, *results.pictures, "--threads", 1, "-o", output]
        words += ["--roll-up", ERROR, "--groups", tmp_path / file]
        assert main.main([*map(str, words)]) == 0
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    for table in (rows, [json.loads(line) for line in lines]):
        assert [row["rolled_up"] for row in table] == [name for name, _ in wanted]
        shares = [row["rolled_up_probability"] for row in table if row["rolled_up"]]
        assert shares == pytest.approx([p for name, p in wanted if name], abs=1e-6)
    with (tmp_path / "out.csv").open() as file:
        in_csv = [row["rolled_up"] or None for row in csv.DictReader(file)]
    assert in_csv == [name for name, _ in wanted]


def test_groups_come_from_the_dataset(results, monkeypatch, tmp_path):
    from latteclip.core import run_options

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="class_groups"):
        results.classifier(roll_up=ERROR)
    config = {"datasets": {"mine": {"class_groups": GROUPS}}}
    run_options.note_options({"mine": "mine"}, config, [])
    assert results.classifier(roll_up=ERROR).groups is not None
    with pytest.raises(UserError, match="podle"):
        results.classifier(roll_up=ERROR, groups={"dog": ["podle"]})


def test_a_classifier_that_answers_made_rolls_up_by_what_checks_it(results):
    (results.model.parent / "history.parquet").unlink()
    place = results.folder / "classifiers" / "image_prototypes.safetensors"
    save_classifier(place, results.head, {"classnames": CLASSNAMES})
    draw = np.random.default_rng(0)
    shares = draw.dirichlet(np.ones(3), 15)
    truth = [CLASSNAMES.index(one.classname) for one in results.predicted[:15]]
    truth = [
        label if right else None for label, right in zip(truth, results.right, strict=False)
    ]
    best = shares.argmax(axis=1)
    right = [label == own for label, own in zip(truth, best.tolist(), strict=True)]
    head = Check(shares.max(axis=1).tolist(), right, shares.tolist())
    results.answer(15, image_prototypes=head)
    classifier = results.classifier(roll_up=ERROR, groups=GROUPS)
    confidence, is_wrong = classifier.groups.mistakes(shares, truth)
    assert classifier.roll_up_threshold == pac_threshold(confidence, is_wrong, ERROR)
    old = Check(shares.max(axis=1).tolist(), right)  # of an earlier version
    results.answer(15, image_prototypes=old)
    with pytest.raises(UserError, match=NAME):
        results.classifier(roll_up=ERROR, groups=GROUPS)


@pytest.mark.parametrize(
    ("rows", "named"),
    [("a,b\nb,c\nc,a\n", "has a cycle"), ("a,first\npodle,first\n", "'podle'")],
)
def test_groups_that_are_no_tree_of_the_classes_are_one_sentence(
    results, tmp_path, capsys, rows, named
):
    (tmp_path / "groups.csv").write_text(f"class,group\n{rows}")
    words = ["predict", results.model, results.pictures[0], "--roll-up", ERROR]
    output = tmp_path / "out.csv"
    words += ["--groups", tmp_path / "groups.csv", "--output", output]
    assert main.main([*map(str, words)]) == 2
    [printed] = capsys.readouterr().err.splitlines()
    assert printed.startswith("error: class_groups") and named in printed
    assert not output.exists()


@pytest.mark.parametrize("text", [None, "- a\n", "first: [a\n"])
def test_a_yaml_file_without_groups_is_one_sentence(results, tmp_path, capsys, text):
    file = tmp_path / "groups.yaml"
    if text is not None:
        file.write_text(text)
    words = ["predict", results.model, results.pictures[0], "--roll-up", ERROR]
    assert main.main([*map(str, words), "--groups", str(file)]) == 2
    [printed] = capsys.readouterr().err.splitlines()
    assert str(file) in printed


def test_groups_without_their_option_are_refused(results, capsys):
    words = ["predict", str(results.model), results.pictures[0], "--groups", "x.csv"]
    assert main.main(words) == 2
    assert "--roll-up" in capsys.readouterr().err
