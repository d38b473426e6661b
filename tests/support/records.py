"""Records as the stages write them, with usual values for the fields that a test does not give."""

from latteclip.labels import fusion_report
from latteclip.labels.fusion_report import FusionReport
from latteclip.labels.guarantees import Interval
from latteclip.train.settings import Recipe, TrainingMetadata

RECIPE = Recipe(epochs=1, warmup_steps=0, batch_size=64, lr=3e-5)


def training_metadata(**fields):
    usual = {"model": "m", "pretrained": None, "labels": "zero_shot", "recipe": RECIPE}
    usual |= {"flags": [], "drawn": [], "identity": "i"}
    return TrainingMetadata(**usual | fields)


def labeller(name="caption", **fields):
    """A labeller of a report, by default the captions."""
    usual = {
        "kind": "captions",
        "table": "votes/caption.parquet",
        "votes": 6,
        "weight": 1.0,
        "accuracy": Interval(0.8, 0.7, 0.9, 0),
        "answers_needed": 0,
    }
    return fusion_report.LabellerReport(name=name, **usual | fields)


def scores(**fields):
    """The class scores as a labeller of a report."""
    table = "class_scores.parquet"
    usual = {"kind": "likelihood", "table": table}
    return labeller("lmm", **usual | fields)


def class_texts(**fields):
    """The zero-shot scores as a labeller of a report."""
    usual = {"kind": "zero_shot", "table": None, "accuracy": None, "votes": 90}
    return labeller("zero_shot", **usual | {"answers_needed": 371} | fields)


def fusion(**fields):
    """The report on labels of captions, about which nobody answered."""
    usual = {
        "classnames": ["a", "b"],
        "labellers": [labeller()],
        "zero_shot": class_texts(),
        "reason": "",
        "is_checked": True,
        **{"image_encoders": [], "examples": 0, "without_evidence": []},
        **{"answers": {}, "checking": [], "checks": {}, "labels_right": None},
    }
    return FusionReport(**usual | fields)


def checked(image_ids, confidence, right):
    """The fields of a report whose labels are checked by answers about some images."""
    check = list(zip(confidence, right, strict=True))
    return {"checking": image_ids, "checks": {"labels": check}, "labels_right": None}
