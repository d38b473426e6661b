"""The charts of a dataset's page: curves of the training, and confidence of the pseudo-labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from latteclip.clip.classifier import load_classifier
from latteclip.core import tables
from latteclip.report import charts, figures, runs
from latteclip.report.runs import Floats

CURVES, POINTS = 6, 120  # methods in a chart of the training, and points of a line
BIASES = 20  # classes in the chart of biases


def training_charts(run_files: Sequence[runs.RunFiles], main: str) -> list[charts.Chart]:
    """Curves of the trained methods, the main one first."""
    names = list(dict.fromkeys(run.method for run in run_files if run.history))
    names.sort(key=lambda name: name != main)
    read = {name: _curves(run_files, name) for name in names[:CURVES]}
    note_on_all = f" The first {CURVES} of {len(names)} methods." if len(names) > CURVES else ""
    note_on_all += _recipe(run_files, names[0]) if names else ""
    found = []
    for column, title, note in (
        ("loss", "Loss", "What training minimises, on the training images."),
        ("agreement", "Agreement with the labels", "Share of predictions equal to their label."),
        ("class_balance", "Balance of the classes", "1: all classes are predicted equally often."),
    ):
        lines = [
            line
            for series, (name, curves) in enumerate(read.items())
            if (line := _line(name, curves, column, series))
        ]
        if lines:
            chart = charts.line_chart(
                title, lines, x_label="epoch", note=f"{note}{note_on_all}", legend=True
            )
            found.append(chart)
    return found


def _recipe(run_files: Sequence[runs.RunFiles], method: str) -> str:
    """Return what a method's training followed, and whether the learning rate was found."""
    history = next(run.history for run in run_files if run.method == method and run.history)
    described = tables.read_metadata(history, "step")
    section = described.get("settings", {}).get("finetune")
    if not section:
        return ""
    found = ", found without labels" if "lr" in described.get("found", []) else ""
    return (
        f" {method}: {section['epochs']} epochs of batches of {section['batch_size']}, learning "
        f"rate {section['lr']:g}{found}."
    )


def latteclip_charts(run_files: Sequence[runs.RunFiles], method: str) -> list[charts.Chart]:
    """What only LatteCLIP's training has: two labels an image, mixed texts, moving prototypes."""
    curves = _curves(run_files, method)
    found = []
    for title, columns, note in (
        (
            "Loss by kind of label",
            {"loss_zero_shot": "pretrained model's label", "loss_finetuned": "tuned model's label"},
            "Each image has a label by the pretrained model and one by the model in training.",
        ),
        (
            "Weights of the descriptions",
            {"weight_class": "class name", "weight_image": "image", "weight_group": "group"},
            "How much each description counts in the text that an image is compared with.",
        ),
        (
            "How far prototypes moved",
            {"prototype_drift": "prototypes"},
            "A prototype stands for a class. 0: where it started, at the text of the class name; "
            "1 minus the cosine to there, mean over classes.",
        ),
    ):
        lines = [
            line
            for series, (column, name) in enumerate(columns.items())
            if (line := _line(name, curves, column, series))
        ]
        if len(lines) > 1 or (len(columns) == 1 and lines):
            found.append(charts.line_chart(title, lines, x_label="epoch", note=note, legend=True))
    return found


def _curves(run_files: Sequence[runs.RunFiles], method: str) -> list[dict[str, Floats]]:
    """The histories of a method's runs."""
    read = [
        runs.read_curves(run.history, POINTS)
        for run in run_files
        if run.method == method and run.history
    ]
    return [curves for curves in read if curves]


def _line(
    name: str, curves: Sequence[dict[str, Floats]], column: str, series: int
) -> charts.Line | None:
    """A column of the histories of S seeds, over the epochs that all of them reached."""
    having = [curve for curve in curves if column in curve and curve[column].any()]
    if not having:
        return None
    points = min(len(curve["epoch"]) for curve in having)
    return charts.Line(
        name, having[0]["epoch"][:points], [curve[column] for curve in having], series
    )


def bias_chart(path: str) -> charts.Chart:
    """What each class got whatever an image showed, which calibration takes off, in logits.

    Of many classes the BIASES with the largest biases, either way, from the mean of all biases:
    what all classes have in common changes no prediction.

    Args:
        path: the calibrated zero-shot classifier.

    Raises:
        UserError: it is missing or broken.
    """
    classifier, described = load_classifier(path)
    biases = -described["logit_scale"] * classifier.bias.double().numpy()  # [C]
    biases -= biases.mean()
    order = np.argsort(-np.abs(biases), kind="stable")[:BIASES]
    order = order[np.argsort(-biases[order], kind="stable")]
    left_out = f" The {len(order)} largest of {len(biases)}." if len(order) < len(biases) else ""
    return charts.class_chart(
        "Classes that zero-shot CLIP favours",
        [described["classnames"][c] for c in order],
        biases[order],
        x_label="score above the mean of all classes",
        note="The part of a class's score that does not depend on the image, over the training "
        f"images. zero_shot_calibrated takes it off.{left_out}",
    )


def pseudo_label_charts(train: runs.Split) -> dict[str, Any]:
    """Confidence of the pseudo-labels of the training images, and how often they are right."""
    correct = None
    if train.labels is not None:
        correct = (train.pseudo_labels == train.labels).astype(np.int_)
    found = figures.reliability(train.confidence, correct)
    drawn = [
        charts.bar_chart(
            "Confidence" if correct is None else "Accuracy against confidence",
            found.edges,
            found.shares,
            found.accuracy,
            x_label="confidence of the pseudo-label",
            note="Bars: share of the training images."
            + ("" if correct is None else " Dotted line: as often right as the confidence says."),
        )
    ]
    if found.kept is not None:
        line = charts.Line("accuracy", np.linspace(1, 100, 100), [100 * found.kept], 0)
        drawn.append(
            charts.line_chart(
                "Accuracy of the surest",
                [line],
                x_label="surest pseudo-labels kept, percent",
                note="How right the pseudo-labels are if only the surest are kept, percent.",
            )
        )
    return {
        "charts": drawn,
        "accuracy": None if correct is None else 100 * float(correct.mean()),
        "confidence": 100 * float(train.confidence.mean()),
        "classes": len(np.unique(train.pseudo_labels)),
    }
