"""A student that learns colours from labels of which some are wrong."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import records
from support.tiny import (
    SIDE,
    write_backbone,
    write_encoder,
    write_index,
    write_pseudo_labels,
)

from latteclip.clip import finetuned
from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config.sections.class_texts import ClassTextsSection
from latteclip.config.sections.finetune import FinetuneSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.holdout import NO_FOLD, Fold
from latteclip.deploy import export, predict
from latteclip.labels.fusion_report import PersonAnswers, write_fusion_report
from latteclip.train import train_student as students
from latteclip.train.history import TrainingMetadata

CLASSNAMES = ["red", "green", "blue"]
N = 150  # and half as many to test
SCALE = 20.0


class Colours:
    """Pictures of three colours, with fused labels of which a fifth are wrong."""

    def __init__(self, folder):
        self.folder, rng = folder, np.random.default_rng(0)
        (folder / "pictures").mkdir()
        n = N + N // 2
        self.truth = rng.integers(0, 3, n)
        self.files = []
        for number, colour in enumerate(self.truth):
            pixels = rng.integers(0, 120, (SIDE, SIDE, 3))
            pixels[..., colour] += 100
            self.files.append(str(folder / "pictures" / f"{number:03d}.png"))
            Image.fromarray(pixels.astype(np.uint8)).save(self.files[-1])
        self.ids = [f"{number:03d}.png" for number in range(n)]
        self.splits = ["train"] * N + ["test"] * (n - N)
        labels = self.truth.tolist()
        write_index(self.path("i.parquet"), self.files, self.splits, labels, CLASSNAMES)
        self.features = np.eye(3, dtype=np.float32)[self.truth]
        write_pseudo_labels(
            self.path("p.parquet"), self.ids, labels, 0.9, self.features, self.splits
        )
        described = {"classnames": CLASSNAMES, "logit_scale": SCALE}
        head = Classifier.of(torch.eye(3) / 4)
        save_classifier(self.path("head.safetensors"), head, described)
        wrong = rng.random(N) < 0.2
        self.fused = np.where(wrong, (self.truth[:N] + 1) % 3, self.truth[:N])
        self.confidence = np.where(wrong, 0.5, 0.9).astype(np.float32)
        self.write()

    def path(self, name):
        return str(self.folder / name)

    def write(self, answers=None):
        names = tables.FUSED_LABELS.names
        nothing = dict.fromkeys(names, [None] * N)
        columns = {"image_id": self.ids[:N], "fused_label": self.fused.tolist()}
        columns["fused_confidence"] = self.confidence
        tables.write(self.path("f.parquet"), nothing | columns, tables.FUSED_LABELS)
        report = records.fusion(answers=answers or PersonAnswers())
        write_fusion_report(self.path("f.json"), report)

    def inputs(self):
        files = ("i.parquet", "p.parquet", "f.parquet", "f.json", "head.safetensors")
        return [self.path(name) for name in files]

    def train(self, student, name="model", *, seed=0, fold=NO_FOLD, **finetune):
        recipe = {"epochs": 6, "warmup_steps": 2, "batch_size": 32, "lr": 3e-3}
        recipe |= {"beta2": 0.999, "weight_decay": 0.05, "batch_norm": "train"}
        settings = students.StudentSettings(
            network=student,
            class_texts=ClassTextsSection(template="a {} thing."),
            finetune=FinetuneSection(**recipe | finetune),
            fold=fold,
        )
        outputs = self.path(name), self.path(f"{name}.parquet")
        options = {"seed": seed, "device": "cpu", "threads": 1}
        students.train_student(*self.inputs(), settings, *outputs, **options)
        return outputs


@pytest.fixture
def colours(tmp_path):
    return Colours(tmp_path)


@pytest.fixture
def student(tmp_path):
    return write_encoder(tmp_path / "student")


def test_a_student_learns_more_than_its_labels_and_is_exported_like_others(
    colours, student, tmp_path
):
    model, history = colours.train(student)
    predictor = predict.Predictor(model, device="cpu", threads=1)
    found = predictor(colours.files[N:], topk=3)
    right = [one.topk_labels[0] for one in found] == colours.truth[N:]
    assert right.mean() > 0.9 > (colours.fused == colours.truth[:N]).mean()
    assert all(sum(one.topk_probabilities) == pytest.approx(1, abs=1e-5) for one in found)
    described = tables.read_metadata(history, TrainingMetadata)
    assert (described.objective, described.labels) == ("student", "fused")
    losses = tables.read(history, tables.HISTORY)["loss"].to_pylist()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    opened = finetuned.load(model, torch.device("cpu"))
    assert opened.classnames == CLASSNAMES and opened.student_scale > 1
    with pytest.raises(UserError, match="--format onnx"):
        export.export(model, str(tmp_path / "clip"), "open_clip")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export.export(model, str(tmp_path / "out"), "onnx")
    assert "A network of timm" in (tmp_path / "out" / "README.md").read_text()
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    for one in found[:5]:
        pixels = opened.clip.preprocess(Image.open(one.path))[None].numpy()
        _, [shares], _ = session.run(None, {"pixel_values": pixels})
        assert shares[one.topk_labels] == pytest.approx(one.topk_probabilities, abs=1e-4)


def test_the_same_seed_gives_the_same_student(colours, student):
    bytes_of = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        colours.train(student, name, seed=seed, epochs=1)
        bytes_of.append((colours.folder / name / "model.safetensors").read_bytes())
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_targets_are_the_probabilities_of_the_labels(colours):
    data = students.read_data(*colours.inputs(), Fold())
    assert len(data.paths) == N
    assert data.targets.sum(dim=1) == pytest.approx(1, abs=1e-5)
    own = data.targets[np.arange(N), colours.fused]
    assert own.numpy() == pytest.approx(colours.confidence)
    # What the label leaves goes to the true class, which the prototypes know.
    wrong = np.flatnonzero(colours.fused != colours.truth[:N])
    rest = data.targets[wrong, colours.truth[:N][wrong]]
    assert (rest > 0.49).all()


def test_the_first_classifier_is_a_logistic_regression_of_centred_features():
    """Its gradient is zero, in plain loops over images and classes."""
    draw = torch.Generator().manual_seed(0)
    n, n_classes, width = 40, 3, 5
    features = torch.randn(n, width, generator=draw) / 5 + 3  # far from zero
    features = torch.nn.functional.normalize(features, dim=1)
    targets = torch.randn(n, n_classes, generator=draw).mul(2).softmax(dim=1)
    head = students.fit_classifier(features, targets)
    shares = head.scores(features).double().softmax(dim=1)
    centred = (features - features.mean(dim=0)).double()
    squares = sum(float(row @ row) for row in centred) / n
    factor = students.LENGTH / squares**0.5
    for label in range(n_classes):
        prior = head.weights[label].double() / factor  # of the scaled features
        gradient = prior + sum(
            (shares[row, label] - targets[row, label]) * factor * centred[row]
            for row in range(n)
        )
        assert gradient.abs().max() < 1e-2 * prior.abs().max()


def test_images_that_judge_are_left_out(colours):
    fold = Fold(0.2, 0, 3)
    checked = colours.ids[:9]
    answers = dict.fromkeys(checked, "red")
    colours.confidence[9] = 0  # of no class, by a person
    colours.write(PersonAnswers(answers, records.checked(checked)))
    data = students.read_data(*colours.inputs(), fold)
    names = {path.rpartition("/")[2] for path in data.paths}
    assert data.drawn == checked and not names & set(colours.ids[:10])
    assert len(names) < N - 10
    many = colours.ids[:40]  # more than a tenth: they are worth more in the training
    colours.write(PersonAnswers(dict.fromkeys(many, "red"), records.checked(many)))
    assert students.read_data(*colours.inputs(), Fold()).drawn == []


def test_a_student_is_a_network_of_timm(colours, tmp_path):
    with pytest.raises(UserError, match="student"):
        colours.train(write_backbone("vit", tmp_path / "clip"))
    assert not (tmp_path / "model").exists()


def test_a_loss_that_is_no_number_is_one_sentence(colours, student):
    with pytest.raises(UserError, match=r"finetune\.lr"):
        colours.train(student, lr=1e30, epochs=3)
    assert not (colours.folder / "model").exists()
