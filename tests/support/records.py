"""Records as the stages write them, with usual values for the fields that a test does not give."""

from latteclip.captions.metadata import AnswerSource, CaptionsMetadata, ScoresMetadata
from latteclip.captions.pictures import Layout
from latteclip.labels import fusion_report
from latteclip.labels.fusion_report import Check, CheckedLabels, FusionReport, PersonAnswers
from latteclip.train.history import TrainingMetadata
from latteclip.train.settings import Recipe

RECIPE = Recipe(epochs=1, warmup_steps=0, batch_size=64, lr=3e-5)


def training_metadata(**fields):
    usual = {"model": "m", "pretrained": None, "objective": "flyp", "labels": "zero_shot"}
    usual |= {
        "recipe": RECIPE,
        "found": [],
        "seed": 0,
        "flags": [],
        "drawn": [],
        "identity": "i",
    }
    return TrainingMetadata(**usual | fields)


def captions_metadata(source=None, **fields):
    source = source or AnswerSource("a/captioner", None, "bfloat16", None, 64)
    usual = {"prompt": "?", "retry_prompt": "Again.", "layout": Layout()}
    return CaptionsMetadata(source=source, **usual | fields)


def scores_metadata(model="a/captioner", **fields):
    usual = {
        "classnames": ["a", "b"],
        "kind": "multiple_choice",
        "prompt": "?",
        "answer": None,
        "topk": 2,
    }
    source = AnswerSource(model, None, "auto", None, 77)
    return ScoresMetadata(source=source, **usual | fields)


def estimate(**fields):
    usual = {
        "value": 0.8,
        "low": 0.7,
        "high": 0.9,
        "tells": True,
        "source": "votes",
        "votes": 6,
        "answers_needed": 0,
    }
    return fusion_report.VoterEstimate(**usual | fields)


def voter(name="caption", **fields):
    """A voter of a report, by default the captions."""
    usual = {
        "kind": "captions",
        "module": "caption",
        "table": "captions/images.parquet",
        "votes": 6,
        "weight": 1.0,
        "family": 0,
        "gain": 0.1,
        "estimate": estimate(),
    }
    return fusion_report.VoterReport(name=name, **usual | fields)


def scores(**fields):
    """The class scores as a voter of a report."""
    table = "class_scores.parquet"
    return voter("lmm", kind="likelihood", module="lmm", table=table, **fields)


def fusion(**fields):
    """The report on labels of captions that do not count, about which nobody answered."""
    usual = {
        "classnames": ["a", "b"],
        "written_names": {},
        "model": "m",
        "pretrained": None,
        "voters": [voter()],
        "zero_shot": None,
        "votes": "captions",
        "voting": 0,
        "agreement": 0.0,
        "corroborated": False,
        "corroboration": fusion_report.Corroboration(0.1, -0.2, 0.412),
        "weights": fusion_report.Weights(1.0, 0.0, 0.0),
        "explained_share": 0.0,
        "independence": 1.0,
        "gains": None,
        "changed": 0,
        "image_encoders": [],
        "answers": PersonAnswers(),
    }
    return FusionReport(**usual | fields)


def checked(image_ids, confidence=(), right=(), classifiers=None, answers=None, **shares):
    """The check of labels by answers about some images."""
    labels = Check(list(confidence), list(right))
    shares = {"value": 0.9, "low": 0.8, "high": 0.95} | shares
    n = len(image_ids) if answers is None else answers
    return CheckedLabels(
        n, **shares, image_id=list(image_ids), labels=labels, classifiers=classifiers or {}
    )
