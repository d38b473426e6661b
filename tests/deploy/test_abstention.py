import csv
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from support import records
from support.tiny import DEMO_CLIP, write_index, write_pictures

from latteclip.cli import main
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, UnknownDetector, save_classifier
from latteclip.clip.encode import encode_files
from latteclip.clip.model_files import DETECTOR
from latteclip.core import tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError
from latteclip.core.files import write_record
from latteclip.core.tables import ClassesMetadata
from latteclip.deploy import export, export_model
from latteclip.deploy.predictor import Predictor
from latteclip.labels.fusion_report import NAME
from latteclip.labels.guarantees import pac_threshold
from latteclip.labels.score_unknown import nth_highest

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
        templates = ClassTemplates(["a {}."])
        clips.save_finetuned(clip, self.head, CLASSNAMES, templates, self.model)
        self.train(drawn=self.ids[:20], labels="fused")
        self.predicted = self.classifier()(self.pictures)
        self.right = np.arange(N) % 5 > 0
        self.answer(20)
        features = encode_files(clip, self.pictures, 1)
        texts = torch.nn.functional.normalize(torch.randn(3, 128, generator=draw), dim=1)
        described = {"classnames": CLASSNAMES, "model": f"local-dir:{DEMO_CLIP}"}
        every = torch.ones(N, dtype=torch.bool)
        described["pretrained"] = None
        detector = UnknownDetector.learn(features, every, texts, described)
        scores = detector.scores(features)
        line = nth_highest(scores.numpy(), N // 3)
        self.detector = replace(detector, threshold=line)
        self.detector.save(folder / DETECTOR)
        self.unknown_scores = scores.tolist()

    def train(self, held_out: Sequence[str] = (), **metadata):
        run = self.model.parent
        schema = pa.schema([("step", pa.int32())])
        metadata = records.training_metadata(**metadata)
        tables.write(run / "history.parquet", {"step": [1]}, schema, metadata)
        columns = {"image_id": held_out, "prediction": [0] * len(held_out)}
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
        texts = records.class_texts(votes=N)
        fields = {"answers": images, "checking": self.ids[:n], "checks": heads}
        write_record(self.folder / NAME, records.fusion(zero_shot=texts, **fields))

    def classifier(self, **options):
        return Predictor(self.model, device="cpu", threads=1, **options)

    def threshold(self, rows):
        confidence = np.array([one.probability for one in self.predicted])
        return pac_threshold(confidence[rows], ~self.right[rows], ERROR)


@pytest.fixture
def results(tmp_path, demo_clip):
    return Results(tmp_path / "results" / "mine", demo_clip)


def test_uncertain_and_unknown_images_are_marked(results, tmp_path, capsys):
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
    words += ["--unknown", "--abstain", ERROR, "--threads", 1, "-o", tmp_path / "out.csv"]
    arguments = ["predict", results.model, *words]
    assert main.main([*map(str, arguments)]) == 3  # an image was left out
    printed = capsys.readouterr().err
    assert "broken.png" in printed
    assert "20 answers" in printed and f"{threshold:.4f}" in printed
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert main.main(["predict", str(results.model), str(words[4]), "--unknown"]) == 3
    for name, column in flags.items():
        assert [row[name] for row in rows] == [str(mark).lower() for mark in column]
    scores = [float(row["unknown_score"]) for row in rows]
    assert scores == pytest.approx(results.unknown_scores, abs=1e-5)


def test_only_images_that_the_model_was_not_trained_on_count(results):
    assert results.classifier(abstain=ERROR).threshold == results.threshold(slice(20))
    results.train(drawn=results.ids[:12], labels="fused")
    assert results.classifier(abstain=ERROR).threshold == results.threshold(slice(12))
    results.train(held_out=results.ids[8:])  # of them 12 have an answer at random
    found = results.classifier(abstain=ERROR).threshold
    assert found == results.threshold(slice(8, 20))


def test_as_many_answers_are_asked_for_as_suffice(results, tmp_path, monkeypatch):
    """A model that left out two thirds takes more answers, and an average never has enough.

    The command names the results as the user does.
    """
    monkeypatch.chdir(tmp_path)
    results.model = results.model.relative_to(tmp_path)
    results.train(held_out=results.ids[8:])
    with pytest.raises(UserError, match="latteclip teach results/mine --budget 6,"):
        results.classifier(abstain=0.2)
    results.train(held_out=results.ids[8:], averaged=2)
    with pytest.raises(UserError, match="image_prototypes"):
        results.classifier(abstain=0.2)


def test_a_classifier_that_answers_made_is_checked_without_them(results):
    (results.model.parent / "history.parquet").unlink()
    place = results.folder / "classifiers" / "image_prototypes.safetensors"
    save_classifier(place, results.head, {"classnames": CLASSNAMES})
    confidence = np.linspace(0.1, 0.9, 15)
    right = np.arange(15) > 0
    check = list(zip(confidence.tolist(), right.tolist(), strict=True))
    results.answer(15, image_prototypes=check)
    found = results.classifier(abstain=ERROR).threshold
    assert found == pac_threshold(confidence, ~right, ERROR)


def test_an_exported_graph_has_the_threshold(results, tmp_path, capsys, monkeypatch):
    written = []
    monkeypatch.setattr(export, "write_onnx", lambda *args: written.append(args[-1]))
    words = ["export", str(results.model), str(tmp_path / "out"), "--format", "onnx"]
    assert main.main([*words, "--abstain", str(ERROR)]) == 0
    threshold = results.threshold(slice(20))
    assert written == [threshold]
    assert f"{threshold:.4f}" in capsys.readouterr().err
    assert f"{threshold:.4f}" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("labels", "n"), [("fused", 23), ("zero_shot", None)])
def test_the_card_tells_that_answers_taught_the_labels(results, tmp_path, labels, n):
    results.train(held_out=results.ids[8:], labels=labels)
    export_model.export(str(results.model), str(tmp_path / "out"), "open_clip")
    text = (tmp_path / "out" / "README.md").read_text()
    [found] = re.findall(r"answers of a person \| (\d+),", text) or [None]
    assert found == (n and str(n))


@pytest.mark.parametrize("option", [{"abstain": ERROR}, {"unknown": True}])
def test_an_exported_model_lacks_what_the_results_have(results, option, tmp_path):
    results.model.rename(tmp_path / "exported")
    with pytest.raises(UserError, match=f"--{next(iter(option))}"):
        Predictor(tmp_path / "exported", device="cpu", threads=1, **option)
