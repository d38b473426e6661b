import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import records
from support.tiny import DEMO_CLIP, write_index, write_pictures

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import class_embeddings
from latteclip.core import holdout, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.files import read_object
from latteclip.core.holdout import NO_FOLD, Fold
from latteclip.evaluate.average_weights import TrainingResult, average_weights
from latteclip.train.settings import TrainingMetadata

CLASSNAMES = ["striped", "dotted", "woven"]
TEMPLATES = ClassTemplates(["a photo of a {} texture."])
WEIGHTS = "open_clip_model.safetensors"
CPU = torch.device("cpu")


def training(folder, number, flags=(), fold=NO_FOLD):
    """A training whose weights are those of the demo's CLIP times a number."""
    clip = clips.load(f"local-dir:{DEMO_CLIP}", None, CPU)
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.mul_(number)
    folder = folder / f"{number}"
    classes = Classifier.of(torch.eye(len(CLASSNAMES), clip.width))
    clips.save_finetuned(clip, classes, CLASSNAMES, TEMPLATES, folder / "model")
    empty = {name: [] for name in tables.HISTORY.names}
    metadata = records.training_metadata(flags=list(flags))
    tables.write(str(folder / "history.parquet"), empty, tables.HISTORY, metadata)
    return TrainingResult(str(folder / "model"), str(folder / "history.parquet"), fold)


def average(folder, images, results):
    """The model, the history and the predictions for images that were left out."""
    names = ("model", "history", "predictions", "metrics", "train_predictions")
    outputs = {f"{name}_output": str(folder / name) for name in names}
    average_weights(
        images,
        results,
        **outputs,
        **{"dataset": "set", "method": "recommended", "seed": 0},
        **{"precision": "bf16", "device": "cpu", "threads": 1},
    )
    return [outputs[f"{name}_output"] for name in ("model", "history", "train_predictions")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The index of 300 training images, of which each training leaves out 34."""
    folder = tmp_path_factory.mktemp("images")
    files = write_pictures(folder, 300)
    return write_index(
        folder / "images.parquet", files, ["train"] * 300, [0] * 300, CLASSNAMES
    )


def test_weights_are_means_and_the_classifier_is_of_the_averaged_text_tower(
    tmp_path, images
):
    folds = [Fold(0.1, number) for number in range(3)]
    numbers = zip((0.8, 1.0, 1.5), folds, strict=True)
    results = [training(tmp_path, number, fold=fold) for number, fold in numbers]
    model, history, left_out = average(tmp_path / "average", images, results)
    start, found = load_file(DEMO_CLIP / WEIGHTS), load_file(f"{model}/{WEIGHTS}")
    for name in ("visual.conv1.weight", "token_embedding.weight", "logit_scale"):
        torch.testing.assert_close(found[name], 1.1 * start[name].float())
    opened = clips.load_finetuned(model, CPU)
    texts = class_embeddings(opened.clip, TEMPLATES, CLASSNAMES)
    torch.testing.assert_close(opened.classifier.weights, texts)
    assert tables.read_metadata(history, TrainingMetadata).flags == ["ours"]
    metrics = read_object(tmp_path / "average" / "metrics")
    assert (metrics["flags"], metrics["images"]) == (["ours"], 300)
    table = tables.read(left_out)
    found = zip(table["image_id"].to_pylist(), table["prediction"].to_pylist(), strict=True)
    assert list(found) == [row for each in results for row in left_out_by(each, images)]
    assert len({*table["prediction"].to_pylist()}) > 1


def left_out_by(result, images):
    """The images that a training left out, each with the class by its own model."""
    model = clips.load_finetuned(result.model, CPU)
    index = tables.read(images, ["image_id", "path"])
    names = index["image_id"].to_pylist()
    for name, path, is_out in zip(
        names, index["path"].to_pylist(), holdout.left_out(names, result.fold), strict=True
    ):
        if is_out:
            picture = model.clip.preprocess(Image.open(path))[None]
            feature = model.clip.model.encode_image(picture).detach()
            yield name, (feature @ model.classifier.weights.T).argmax().item()


def test_a_collapsed_training_has_no_part_unless_all_collapsed(tmp_path, images):
    sound = training(tmp_path, 1.0, fold=Fold(0.1, 0))
    collapsed = training(tmp_path, 1.5, ("ours", "collapsed"), fold=Fold(0.1, 1))
    model, history, left_out = average(tmp_path / "one", images, [collapsed, sound])
    scale = load_file(DEMO_CLIP / WEIGHTS)["logit_scale"].float()
    torch.testing.assert_close(load_file(f"{model}/{WEIGHTS}")["logit_scale"], scale)
    found = tables.read(left_out)["image_id"].to_pylist()
    assert found == [name for name, _ in left_out_by(sound, images)]
    assert "collapsed" not in tables.read_metadata(history, TrainingMetadata).flags
    _, history, _ = average(tmp_path / "all", images, [collapsed])
    assert "collapsed" in tables.read_metadata(history, TrainingMetadata).flags
