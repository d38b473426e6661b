import torch
from safetensors.torch import load_file
from support.tiny import DEMO_CLIP

from latteclip.clip import finetuned
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import class_embeddings
from latteclip.core import tables
from latteclip.deploy.average_weights import TrainingResult, average_weights
from latteclip.evaluate.train_predictions import TRAIN_PREDICTIONS

CLASSNAMES = ["striped", "dotted", "woven"]
TEMPLATE = "a photo of a {} texture."
WEIGHTS = "open_clip_model.safetensors"
CPU = torch.device("cpu")


def training(folder, number, marks=("ours",), classnames=CLASSNAMES):
    """The files of a training whose weights are those of the demo's CLIP times a number."""
    clip = clips.load(f"local-dir:{DEMO_CLIP}", None, CPU)
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.mul_(number)
    folder = folder / f"{number}"
    classes = Classifier.of(torch.eye(len(classnames), clip.config["embed_dim"]))
    clips.save(clip, classes, classnames, TEMPLATE, folder / "model")
    empty = {name: [] for name in tables.HISTORY.names}
    metadata = {"settings": {"number": number}, "marks": list(marks)}
    tables.write(str(folder / "history.parquet"), empty, tables.HISTORY, metadata)
    columns = {"image_id": [f"{number}.png"], "prediction": [round(number) % 3], "held_out": [True]}
    described = {"classnames": classnames}
    tables.write(str(folder / "train_predictions.parquet"), columns, TRAIN_PREDICTIONS, described)
    return TrainingResult(
        str(folder / "model"),
        str(folder / "history.parquet"),
        str(folder / "train_predictions.parquet"),
    )


def average(folder, results):
    outputs = [str(folder / name) for name in ("model", "history.parquet", "left_out.parquet")]
    average_weights(results, *outputs)
    return outputs


def test_weights_are_means_and_the_classifier_is_of_the_averaged_text_tower(tmp_path):
    results = [training(tmp_path, number) for number in (0.8, 1.0, 1.5)]
    model, history, left_out = average(tmp_path / "average", results)
    start, found = load_file(DEMO_CLIP / WEIGHTS), load_file(f"{model}/{WEIGHTS}")
    for name in ("visual.conv1.weight", "token_embedding.weight", "logit_scale"):
        torch.testing.assert_close(found[name], 1.1 * start[name].float())
    opened = finetuned.load(model, CPU, classnames=CLASSNAMES)
    texts = class_embeddings(opened.clip, TEMPLATE, CLASSNAMES)
    torch.testing.assert_close(opened.classifier.weights, texts)
    assert tables.read_metadata(history, "step")["marks"] == ["ours"]
    table, _ = tables.read(left_out, TRAIN_PREDICTIONS)
    assert table["image_id"].to_pylist() == ["0.8.png", "1.0.png", "1.5.png"]


def test_a_collapsed_training_has_no_part_unless_all_collapsed(tmp_path):
    sound, collapsed = training(tmp_path, 1.0), training(tmp_path, 1.5, ("ours", "collapsed"))
    model, history, left_out = average(tmp_path / "one", [collapsed, sound])
    scale = load_file(DEMO_CLIP / WEIGHTS)["logit_scale"].float()
    torch.testing.assert_close(load_file(f"{model}/{WEIGHTS}")["logit_scale"], scale)
    assert tables.read(left_out, TRAIN_PREDICTIONS)[0]["image_id"].to_pylist() == ["1.0.png"]
    assert "collapsed" not in tables.read_metadata(history, "step")["marks"]
    _, history, _ = average(tmp_path / "all", [collapsed])
    assert "collapsed" in tables.read_metadata(history, "step")["marks"]
