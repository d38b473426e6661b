import json
import runpy
import shutil
import statistics
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
from support.backbones import CLASSNAMES, CPU, NAMES, TEMPLATES, predictions
from support.tiny import BACKBONES, SIDE, write_backbone, write_encoder, write_pictures

from latteclip.cli import main
from latteclip.clip import image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import ENCODERS, Classifier, load_classifier, save_classifier
from latteclip.core.errors import UserError
from latteclip.deploy.export_model import export

FORMS = ["open_clip", "transformers", "onnx"]


def tuned(folder, clip, encoders=()):
    """Write a model with a random classifier of CLIP's features and those of encoders."""
    width = clip.width + sum(encoder.width for encoder in encoders)
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(len(CLASSNAMES), width, generator=draw) / 9
    described = {
        "classnames": CLASSNAMES,
        "class_templates": {"templates": TEMPLATES},
        "encoder_widths": [encoder.width for encoder in encoders],
    }
    clip.save(folder)
    save_classifier(folder / clips.CLASSIFIER, Classifier.of(weights), described)
    for number, encoder in enumerate(encoders):
        encoder.save(folder / ENCODERS / str(number))
    return folder


# --- the same predictions in every format --------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_python_of_the_card_predicts_as_we_do(
    model, exported, tmp_path, form, monkeypatch
):
    out = exported(form)
    paths = write_pictures(tmp_path, 6, size=(97, 70))
    for path in paths:
        turned = Image.Exif()
        turned[ExifTags.Base.Orientation] = 6  # as a phone that is held upright writes it
        Image.open(path).save(path, exif=turned)
    monkeypatch.setattr(sys, "path", [*sys.path])
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["tags"]
    code = text.split("```python\n")[1].split("```")[0]
    labels = []
    for one in predictions(model, paths):
        text = code.replace("<this folder>", str(out)).replace("photo.jpg", one.path)
        names = {}
        exec(text, names)
        labels.append(int(np.ravel(names["label"])[0]))
        scores = np.ravel(torch.as_tensor(names["scores"]).detach())
        assert scores[one.topk_labels] == pytest.approx(one.topk_scores, abs=2e-3)
        assert labels[-1] == one.topk_labels[0]
    assert len(set(labels)) > 1


VARIANTS = {
    "shortest": (
        {"resize_mode": "shortest", "interpolation": "bilinear"},
        {"custom_text": True},
    ),
    "squash": ({"resize_mode": "squash", "std": [0.2, 0.3, 0.4]}, {"quick_gelu": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_kinds_of_vit_are_the_same_in_transformers(tmp_path, variant, monkeypatch):
    preprocess, config = VARIANTS[variant]
    described = {**BACKBONES["vit"][0], **config}
    monkeypatch.setitem(BACKBONES, "variant", (described, preprocess))
    clip = clips.load(write_backbone("variant", tmp_path / "base"), None, CPU)
    model = tuned(tmp_path / "model", clip)
    export(str(model), str(tmp_path / "out"), "transformers")
    network = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    texts = [TEMPLATES[0].format(name) for name in CLASSNAMES]
    ours = predictions(model, write_pictures(tmp_path / "pictures", 6, size=(97, 70)))
    images = [Image.open(one.path).convert("RGB") for one in ours]
    with torch.no_grad():
        inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
        output = network(**inputs)
        wanted = torch.nn.functional.normalize(
            clip.model.encode_text(clip.tokenizer(texts))
        )
    torch.testing.assert_close(output.text_embeds, wanted, atol=1e-5, rtol=0)
    head = load_file(tmp_path / "out" / "prototypes.safetensors")["classifier"]
    for one, scores in zip(ours, (output.image_embeds @ head.T).numpy(), strict=True):
        assert scores[one.topk_labels] == pytest.approx(one.topk_scores, abs=2e-3)


def assert_onnx_predicts_as_we_do(model, out, photos):
    exported = runpy.run_path(str(out / "predict.py"))["Model"](out / "model.onnx")
    for one in predictions(model, photos):
        scores, probabilities = exported(one.path)
        assert scores[one.topk_labels] == pytest.approx(one.topk_scores, abs=1e-4)
        shares = probabilities[one.topk_labels]
        assert shares == pytest.approx(one.topk_probabilities, abs=1e-4)
    return exported


def test_predict_py_knows_names_and_every_kind_of_photograph(model, exported, photos):
    out = exported("onnx")
    found = assert_onnx_predicts_as_we_do(model, out, photos)
    assert found.classnames == NAMES
    pixels = {"pixel_values": np.zeros((1, 3, *found.inputs[0]["size"]), np.float32)}
    scores, _, features = found.session.run(None, pixels)
    assert np.linalg.norm(features) == pytest.approx(1, abs=1e-5)
    head = load_classifier(model / clips.CLASSIFIER)[0].scores(torch.from_numpy(features))
    assert scores == pytest.approx(head.numpy(), abs=1e-4)


def test_image_encoders_are_in_the_onnx_file_and_not_in_transformers(
    tmp_path, photos, monkeypatch
):
    """And CLIP may have another image tower than a ViT, and squash images."""
    pytest.importorskip("onnxscript", reason="latteclip[onnx] is not installed")
    squashed = (BACKBONES["resnet"][0], {"resize_mode": "squash"})
    monkeypatch.setitem(BACKBONES, "squashed", squashed)
    clip = clips.load(write_backbone("squashed", tmp_path / "base"), None, CPU)
    change = {"crop_pct": 0.9, "crop_mode": "border", "interpolation": "bilinear"}
    config = {"pretrained_cfg": {"input_size": [3, SIDE, SIDE], **change}}
    name = write_encoder(tmp_path / "timm", change=config)
    model = tuned(tmp_path / "model", clip, [image_encoders.load(name, CPU)])
    with pytest.raises(UserError, match="image encoders"):
        export(str(model), str(tmp_path / "out"), "transformers")
    export(str(model), str(tmp_path / "out"), "onnx")
    assert not (tmp_path / "out" / "image_encoders").exists()
    assert_onnx_predicts_as_we_do(model, tmp_path / "out", photos)


def test_a_text_tower_that_is_no_clip_s_is_refused_for_transformers(tmp_path):
    clip = clips.load(write_backbone("hf_mean", tmp_path / "base"), None, CPU)
    model = tuned(tmp_path / "model", clip)
    with pytest.raises(UserError, match=r"model has another .* open_clip or onnx "):
        export(str(model), str(tmp_path / "out"), "transformers")


# --- predict.py ----------------------------------------------------------------------------------


def run_without_torch(script, *words):
    hide = "import sys; sys.modules |= dict.fromkeys(['torch', 'open_clip', 'latteclip']); "
    run = "import runpy; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", hide + run, str(script), *words]
    return subprocess.run(command, capture_output=True, check=False, encoding="utf-8")


def test_predict_py_runs_without_torch(model, exported, photos, tmp_path):
    """Its graph has a threshold, below which it abstains."""
    onnx = pytest.importorskip("onnx")
    out = shutil.copytree(exported("onnx"), tmp_path / "out")
    ours = predictions(model, photos)
    threshold = statistics.median(one.probability for one in ours)
    graph = onnx.load(out / "model.onnx")
    [last] = [one for one in graph.metadata_props if one.key == "threshold"]
    last.value = json.dumps(threshold)
    onnx.save(graph, out / "model.onnx")
    content = Path(photos[0]).read_bytes()
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    bomb = b"P6\n20000 20000\n255\n"  # whose error is no OSError
    broken = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path, part in zip(broken, (content[:200], bomb, postscript), strict=True):
        path.write_bytes(part)
    done = run_without_torch(out / "predict.py", *map(str, broken), *photos)
    assert done.returncode == 3  # images were left out
    assert all(f"skipped: {path}" in done.stderr for path in broken)
    assert done.stderr.count("cannot identify") == 1  # PostScript, which Ghostscript reads
    assert "Traceback" not in done.stderr
    for line, one in zip(done.stdout.splitlines(), ours, strict=True):
        path, classname, probability = line.split("\t")
        is_below = one.probability < threshold - 1e-6
        assert (path, classname) == (one.path, one.classname + " (abstained)" * is_below)
        assert float(probability) == pytest.approx(one.probability, abs=1e-4)


# --- what lies beside the weights ----------------------------------------------------------------


def test_an_export_in_the_folder_of_the_model_leaves_out_what_snakemake_put_there(
    model, tmp_path, monkeypatch
):
    copy = shutil.copytree(model, tmp_path / "model")
    (copy / ".snakemake_timestamp").touch()
    monkeypatch.chdir(copy)
    assert main.main(["export", ".", "../out", "--format", "open_clip"]) == 0
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert "open_clip_model.safetensors" in found and ".snakemake_timestamp" not in found
