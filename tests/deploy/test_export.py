import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import ExifTags, Image
from safetensors.torch import load_file
from support import records
from support.tiny import BACKBONES, write_backbone, write_pictures

from latteclip.cli import main
from latteclip.clip import finetuned
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, load_classifier
from latteclip.clip.encode import class_embeddings
from latteclip.core import hashing, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.deploy import predict
from latteclip.deploy.export import export
from latteclip.labels import fusion_report

CLASSNAMES = [
    "red thing",
    "blue sky",
    "grey",
    "striped",
    "dotted thing",
    "woven",
    "the sky",
]
TEMPLATE = "a photo of the {}."
N = 50


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Images of two shapes: pictures that must be cropped, and squares."""
    folder = tmp_path_factory.mktemp("pictures")
    return [
        *write_pictures(folder / "wide", N // 2, size=(97, 70)),
        *write_pictures(folder / "square", N // 2, seed=1, size=(64, 64)),
    ]


@pytest.fixture(scope="module")
def tuned_model(tmp_path_factory):
    """Makes the folder of a tuned model from an open_clip name, with the class texts' features."""

    def make(name):
        folder = tmp_path_factory.mktemp("run") / "model"
        clip = clips.load(name, None, torch.device("cpu"))
        embeddings = class_embeddings(clip, TEMPLATE, CLASSNAMES)
        clips.save(clip, Classifier.of(embeddings), CLASSNAMES, TEMPLATE, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def demo(tuned_model, demo_clip):
    """The demo's CLIP as a tuned model."""
    return tuned_model(f"local-dir:{Path(__file__).parents[2]}/latteclip/demo/models/clip")


@pytest.fixture(scope="module")
def biased(demo_clip, tmp_path_factory):
    """The demo's CLIP with a classifier that has a bias and rows of many lengths."""
    folder = tmp_path_factory.mktemp("biased") / "model"
    generator = torch.Generator().manual_seed(0)
    shape = len(CLASSNAMES), demo_clip.config["embed_dim"]
    weights, bias = (
        torch.randn(size, generator=generator) / 9 for size in (shape, shape[:1])
    )
    clips.save(demo_clip, Classifier.of(weights, bias), CLASSNAMES, TEMPLATE, folder)
    return folder


def predicted(model, pictures):
    classifier = predict.Predictor(model, device="cpu", threads=1)
    return classifier(pictures, topk=len(CLASSNAMES))


def assert_same(ours, scores):
    """scores [N, C]: the same predictions; and nearly the same cosines."""
    assert [one.topk_labels[0] for one in ours] == scores.argmax(1).tolist()
    for one, row in zip(ours, scores.tolist(), strict=True):
        assert [row[label] for label in one.topk_labels] == pytest.approx(
            one.topk_scores, abs=2e-3
        )


def rgb(paths):
    return [Image.open(path).convert("RGB") for path in paths]


# --- each form, loaded by the stock library ------------------------------------------------------


def transformers_scores(folder, pictures):
    """Cosines [N, C] of images, and features of class texts [C, D], by stock transformers."""
    model = transformers.CLIPModel.from_pretrained(folder)
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    prototypes = load_file(folder / "prototypes.safetensors")["classifier"]
    texts = [TEMPLATE.format(name) for name in CLASSNAMES]
    with torch.no_grad():
        inputs = processor(
            images=rgb(pictures), text=texts, return_tensors="pt", padding=True
        )
        output = model(**inputs)
    return output.image_embeds @ prototypes.T, output.text_embeds, prototypes


@pytest.fixture
def variant(tmp_path, monkeypatch, tuned_model):
    """A tuned model of a random ViT with the parts that differ among CLIPs."""

    def make(preprocess, **config):
        described = {**BACKBONES["vit"][0], **config}
        monkeypatch.setitem(BACKBONES, "variant", (described, preprocess))
        return tuned_model(write_backbone("variant", tmp_path / "variant"))

    return make


SHORTEST = {"resize_mode": "shortest", "interpolation": "bilinear", "mean": [0.4, 0.5, 0.6]}
SQUASH = {"resize_mode": "squash", "std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize(
    ("preprocess", "config"),
    [
        (SHORTEST, {}),  # OpenAI's tokenizer
        (SQUASH, {"quick_gelu": True}),
        ({}, {"custom_text": True}),
    ],
    ids=["clip's tokenizer", "quick_gelu", "custom_text"],
)
def test_kinds_of_vit_are_the_same_in_transformers(
    variant, pictures, tmp_path, preprocess, config
):
    model = variant(preprocess, **config)
    export(str(model), str(tmp_path / "out"), "transformers")
    scores, texts, prototypes = transformers_scores(tmp_path / "out", pictures)
    assert_same(predicted(model, pictures), scores)
    assert torch.allclose(texts, prototypes, atol=1e-5)


@pytest.mark.parametrize("kind", ["siglip", "convnext", "hf_mean"])
def test_a_part_that_transformers_lacks_is_refused(tuned_model, tmp_path, kind, capsys):
    model = tuned_model(write_backbone(kind, tmp_path / "base"))
    arguments = ["export", str(model), str(tmp_path / "out"), "--format", "transformers"]
    assert main.main(arguments) == 2
    assert "--format transformers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_packages_is_one_sentence(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    arguments = ["export", str(demo), str(tmp_path / "out"), "--format", "onnx"]
    assert main.main(arguments) == 2
    assert "onnxscript" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- what lies beside the weights ----------------------------------------------------------------


@pytest.fixture
def run(demo, tmp_path):
    """The tuned model in a run that has metrics and history."""
    run = tmp_path / "run"
    shutil.copytree(demo, run / "model")
    figures = {"images": 40, "acc1": 0.5125, "acc5": 0.9, "mean_per_class_recall": 0.4}
    metrics = {
        "dataset": "demo",
        "method": "latteclip",
        "seed": 2,
        "flags": [],
        "per_class": [],
    }
    (run / "metrics.json").write_text(json.dumps(metrics | figures))
    metadata = records.training_metadata(model="ViT-B/32", pretrained="laion2b_s34b_b79k")
    columns = {name: [None] for name in tables.HISTORY.names}
    tables.write(run / "history.parquet", columns, tables.HISTORY, metadata)
    return run


def card_of(folder):
    """The YAML and the text of a model card."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_tells_dataset_method_numbers_licence_and_base_model(run, tmp_path):
    export(str(run), str(tmp_path / "out"), "open_clip", "mit")
    front, text = card_of(tmp_path / "out")
    assert front["license"] == "mit"
    assert front["library_name"] == "open_clip"
    assert front["base_model"] == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    results = front["model-index"][0]["results"][0]
    assert results["dataset"]["type"] == "demo"
    assert [metric["value"] for metric in results["metrics"]] == [0.5125, 0.9, 0.4]
    for said in ("latteclip", "51.25 %", *CLASSNAMES):
        assert said in text
    sums = ["sha256sum", "--check", "--strict", "--quiet", hashing.SUMS]
    subprocess.run(sums, cwd=tmp_path / "out", check=True)
    names = json.loads((tmp_path / "out" / "clip_benchmark_classnames.json").read_text())
    assert names == {"demo": CLASSNAMES}


def test_the_card_says_how_many_answers_taught_the_labels(run, tmp_path):
    answers = fusion_report.PersonAnswers({"1.jpg": CLASSNAMES[0], "2.jpg": None})
    run = shutil.copytree(run, tmp_path / "mine" / "latteclip" / "seed2")
    report = tmp_path / "mine" / fusion_report.NAME
    fusion_report.write_fusion_report(report, records.fusion(answers=answers))
    for labels, said in (("zero_shot", "not read |"), ("fused", "not read, but 2 answers")):
        metadata = records.training_metadata(labels=labels)
        columns = {name: [None] for name in tables.HISTORY.names}
        tables.write(run / "history.parquet", columns, tables.HISTORY, metadata)
        export(str(run), str(tmp_path / labels), "open_clip", "mit")
        assert f"labels of training images | {said}" in card_of(tmp_path / labels)[1]


@pytest.mark.parametrize("form", ["open_clip", "transformers", "onnx"])
def test_the_python_of_the_card_runs(biased, pictures, tmp_path, monkeypatch, form):
    if form == "onnx":
        pytest.importorskip(
            "onnxscript", reason="the extra latteclip[onnx] is not installed"
        )
    out = tmp_path / form
    monkeypatch.setattr(sys, "path", [*sys.path])
    export(str(biased), str(out), form)
    code = card_of(out)[1].split("```python\n")[1].split("```")[0]
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # as a phone that is held upright writes it
    found, photos = [], []
    for number, image in enumerate(rgb(pictures[:9])):
        photos.append(str(tmp_path / f"{number}.png"))
        image.save(photos[-1], exif=turned)
        names = {}
        exec(
            code.replace("<this folder>", str(out)).replace("photo.jpg", photos[-1]), names
        )
        label = int(np.ravel(names["label"])[0])
        found.append((CLASSNAMES[label], names["scores"].max().item()))
    predictions = predicted(biased, photos)
    assert [name for name, _ in found] == [one.classname for one in predictions]
    assert [score for _, score in found] == pytest.approx(
        [p.score for p in predictions], abs=2e-3
    )
    assert len(dict(found)) > 1


def test_every_template_is_told_and_what_classes_are_also_called(demo, demo_clip, tmp_path):
    written = {"grey": "Grey", "blue sky": "Blue_Sky"}
    words = ClassTemplates(
        [TEMPLATE, "a {}", "the {}?"], {"grey": ["silver", "ash"]}, written
    )
    classifier, _ = load_classifier(demo / clips.CLASSIFIER)
    clips.save(demo_clip, classifier, CLASSNAMES, words, tmp_path / "model")
    assert finetuned.load(tmp_path / "model", torch.device("cpu")).class_templates == words
    export(str(tmp_path / "model"), str(tmp_path / "out"), "transformers")
    templates = json.loads((tmp_path / "out" / "clip_benchmark_templates.json").read_text())
    assert templates == {"custom": ["a photo of the {c}.", "a {c}", "the {c}?"]}
    _, text = card_of(tmp_path / "out")
    for said in (TEMPLATE, "Blue_Sky", "Grey", "silver", "ash"):
        assert said in text
    names = json.loads((tmp_path / "out" / "clip_benchmark_classnames.json").read_text())
    assert names == {"custom": CLASSNAMES}  # for texts of CLIP


# --- the folder ----------------------------------------------------------------------------------


def test_a_model_may_be_named_from_its_own_folder_or_the_one_above(
    demo, tmp_path, monkeypatch
):
    copy = tmp_path / "model"
    shutil.copytree(demo, copy)
    (copy / ".snakemake_timestamp").touch()
    for folder, name in ((tmp_path, "model"), (copy, ".")):
        monkeypatch.chdir(folder)
        destination = tmp_path / f"from {folder.name}"
        assert main.main(["export", name, str(destination), "--format", "open_clip"]) == 0
        assert "open_clip_model.safetensors" in names(destination)
        assert ".snakemake_timestamp" not in names(destination)


def test_a_folder_inside_the_model_is_refused(demo, tmp_path, capsys):
    copy = tmp_path / "model"
    shutil.copytree(demo, copy)
    before = names(copy)
    assert (
        main.main(["export", str(copy), str(copy / "mine"), "--format", "open_clip"]) == 2
    )
    assert str(copy / "mine") in capsys.readouterr().err
    assert names(copy) == before


def names(folder):
    return {path.name for path in folder.iterdir()}
