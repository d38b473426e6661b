"""Quantise an exported graph to 8-bit integers, and compare it with the graph before."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latteclip.clip.finetuned import FinetunedModel
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.deploy.model_origin import result_file
from latteclip.deploy.onnx_graph import MODEL, PACKAGES
from latteclip.deploy.predict import Prediction, files_of

log = logging.getLogger(__name__)
CALIBRATING = 128  # images from which the ranges of activations are taken, at most
COMPARED = 500  # further images on which both graphs are run, at most
FEWEST = 20  # images without which nothing can be calibrated and compared
AGREEMENT = 0.98  # share of equal classes below which a warning is due
QUANTISED = ["MatMul", "Gemm", "Conv"]
# Folded into the layer before, whose numbers then have the range that is left of them.
BOUNDS = ["Clip", "Relu"]
# An image file to the inputs [1, 3, H, W] of the graph, by name.
Prepare = Callable[[str], dict[str, npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Pictures:
    """Image files for the quantisation."""

    calibrating: list[str]
    compared: list[str]
    labels: list[int | None]  # true classes of the compared ones, where they are known


@dataclass(frozen=True)
class Loss:
    """What the quantisation changed on images that did not calibrate it."""

    images: int
    agreement: float  # share of the images with the same class as before
    labelled: int  # images with a known class
    accuracy: float | None  # accuracy on them; None: there are none
    accuracy_before: float | None

    @property
    def sentence(self) -> str:
        text = (
            f"int8 gives the same class as float32 for {100 * self.agreement:.1f} % of "
            f"{self.images} images that did not calibrate it"
        )
        if self.accuracy is None or self.accuracy_before is None:
            return f"{text}."
        return (
            f"{text}, and is right for {100 * self.accuracy:.1f} % of {self.labelled} labelled "
            f"images (float32: {100 * self.accuracy_before:.1f} %)."
        )


def draw_pictures(opened: FinetunedModel, paths: Sequence[str]) -> Pictures:
    """Draw images that calibrate and others that compare, from paths or the dataset's results.

    In the results, training images calibrate and test images compare, where there are some. Raises
    UserError for fewer than FEWEST images.
    """
    if paths:
        drawn = _shuffled(files_of(paths))
        truth: dict[str, int | None] = {}
        split_of: dict[str, str] = {}
    else:
        index_path = result_file(
            "images.parquet", opened.folder, "--int8 without --pictures"
        )
        index = tables.read(index_path, tables.IMAGES, ["path", "split", "label"])
        truth = dict(
            zip(index["path"].to_pylist(), index["label"].to_pylist(), strict=True)
        )
        split_of = dict(zip(truth, index["split"].to_pylist(), strict=True))
        drawn = _shuffled(truth)
    if len(drawn) < FEWEST:
        raise UserError(
            f"--int8 needs at least {FEWEST} images, half of them to calibrate, and there are "
            f"{len(drawn)}; name more by --pictures."
        )
    test = [path for path in drawn if split_of.get(path) == "test"]
    training = [path for path in drawn if split_of.get(path) != "test"]
    if min(len(test), len(training)) < FEWEST // 2:
        half = len(drawn) // 2
        training = drawn[:half]
        test = drawn[min(half, CALIBRATING) :]
    compared = test[:COMPARED]
    labels = [truth.get(path) for path in compared]
    return Pictures(training[:CALIBRATING], compared, labels)


def _shuffled(paths: Any) -> list[str]:
    every = sorted(paths)
    return [every[row] for row in np.random.default_rng(0).permutation(len(every))]


def quantise(folder: Path, pictures: Pictures, prepare: Prepare) -> Loss:
    """Replace the graph of a folder by an int8 one with the same metadata, and compare both."""
    try:
        import onnx
        import onnxruntime
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantType,
            quantize_static,
        )
    except ImportError as error:
        raise UserError(f"--int8: {error}; {PACKAGES}.") from error

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.inputs = map(prepare, pictures.calibrating)

        def get_next(self) -> Any:
            return next(self.inputs, None)

    path = folder / MODEL
    before = onnxruntime.InferenceSession(path)
    graph = onnx.load(path, load_external_data=False).graph
    classifier = [node.name for node in graph.node if node.op_type in QUANTISED][-1]
    level = logging.root.level
    with replacing(folder / "int8.onnx") as temporary:
        logging.root.setLevel(logging.ERROR)  # it recommends what changes nothing here
        try:
            quantize_static(
                path,
                temporary,
                Reader(),
                op_types_to_quantize=[*QUANTISED, *BOUNDS],
                activation_type=QuantType.QUInt8,  # faster than signed ones on x86
                per_channel=True,  # a scale for each row of the weights
                nodes_to_exclude=[classifier],
            )
        finally:
            logging.root.setLevel(level)
        after = onnxruntime.InferenceSession(temporary)
        loss = _compare(before, after, pictures, prepare)
    (folder / "int8.onnx").replace(path)
    path.with_name(f"{MODEL}.data").unlink(missing_ok=True)  # weights in float32
    if loss.agreement < AGREEMENT:
        log.warning(
            "%s Export without --int8 where that matters, or name more pictures.",
            loss.sentence,
        )
    return loss


class GraphClassifier:
    """A graph of a folder that classifies image files, as `Predictor` does."""

    def __init__(self, folder: Path, prepare: Prepare) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(folder / MODEL)
        self.prepare = prepare

    def __call__(self, paths: Sequence[str], topk: int) -> list[Prediction]:
        """Return the predictions of image files by their numbers of classes, best first."""
        return [self._predict(path, topk) for path in paths]

    def _predict(self, path: str, topk: int) -> Prediction:
        outputs = ["scores", "probabilities"]
        [scores], [shares] = self.session.run(outputs, self.prepare(path))
        best = scores.argsort()[::-1][:topk]
        names = [str(label) for label in best]
        return Prediction(
            path, best.tolist(), names, scores[best].tolist(), shares[best].tolist()
        )


def _compare(before: Any, after: Any, pictures: Pictures, prepare: Prepare) -> Loss:
    inputs = map(prepare, pictures.compared)
    classes = np.array([*_classes([before, after], inputs)])  # [N, 2]
    truth = np.array([-1 if label is None else label for label in pictures.labels])
    is_known = truth >= 0
    right = [None, None]
    if is_known.any():
        right = (classes[is_known] == truth[is_known, None]).mean(axis=0).tolist()
    return Loss(
        images=len(classes),
        agreement=float((classes[:, 0] == classes[:, 1]).mean()),
        labelled=int(is_known.sum()),
        accuracy_before=right[0],
        accuracy=right[1],
    )


def _classes(sessions: Sequence[Any], inputs: Iterator[Any]) -> Iterator[list[int]]:
    """Yield the best classes of each image by all sessions."""
    for values in inputs:
        scores = [session.run(["scores"], values)[0] for session in sessions]
        yield [int(each.argmax()) for each in scores]
