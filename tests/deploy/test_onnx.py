import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from support.tiny import SIDE, write_backbone, write_encoder

from latteclip.cli import main
from latteclip.clip import finetuned, image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, load_classifier, save_classifier
from latteclip.data.images import open_rgb
from latteclip.deploy import export, predict

pytest.importorskip("onnxscript", reason="the extra latteclip[onnx] is not installed")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TEMPLATE = "a photo of a {} texture."
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of every kind: wide, high, square, smaller than an input, turned, of 16 bits."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    rng = np.random.default_rng(0)
    sizes = [(97, 70), (70, 97), (64, 64), (31, 20), (20, 33), (640, 201), (155, 300)]
    for number, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 255, (height // 5 + 1, width // 5 + 1, 3))
        image = Image.fromarray(pixels.astype(np.uint8)).resize((width, height))
        turned = Image.Exif()
        turned[ExifTags.Base.Orientation] = 1 + number
        paths.append(str(folder / f"{number}.png"))
        image.save(paths[-1], exif=turned)
    paths.append(str(folder / "16_bit.png"))
    deep = np.linspace(0, 65_535, 90 * 80).reshape(90, 80).astype(np.uint16)
    Image.fromarray(deep).save(paths[-1])
    return paths


def module_of(folder):
    """The exported predict.py as a module."""
    spec = importlib.util.spec_from_file_location("exported", folder / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(model, out, photos):
    """The exported predict.py gives our scores and probabilities."""
    exported = module_of(out).Model(out / "model.onnx")
    ours = predict.Predictor(model, device="cpu", threads=1)(photos, topk=10**6)
    assert len({one.score for one in ours}) > 1
    for one in ours:
        scores, probabilities = exported(one.path)
        assert scores[one.topk_labels] == pytest.approx(one.topk_scores, abs=1e-4)
        shares = probabilities[one.topk_labels]
        assert shares == pytest.approx(one.topk_probabilities, abs=1e-4)
    return exported


def tuned(folder, clip, encoders=(), seed=0):
    """Write a model with a random classifier of CLIP's features and those of encoders."""
    draw = torch.Generator().manual_seed(seed)
    width = clip.config["embed_dim"] + sum(encoder.width for encoder in encoders)
    weights = torch.randn(7, width, generator=draw) / 9
    classifier = Classifier.of(weights, torch.randn(7, generator=draw) / 9)
    clips.save_network(clip, folder)
    described = {
        "classnames": [*"abcdefg"],
        "template": "a {}.",
        "written_names": {"a": "Ä b"},
        finetuned.ENCODER_WIDTHS: [encoder.width for encoder in encoders],
    }
    save_classifier(folder / clips.CLASSIFIER, classifier, described)
    for number, encoder in enumerate(encoders):
        place = folder / image_encoders.SUBFOLDER / str(number)
        image_encoders.save(encoder, place)
    return folder


@pytest.fixture(scope="module")
def of_demo(demo_clip, tmp_path_factory):
    """The demo's CLIP as a tuned model, and the folder of its export."""
    folder = tmp_path_factory.mktemp("demo")
    model = tuned(folder / "model", demo_clip)
    export.export(str(model), str(folder / "out"), "onnx")
    return model, folder / "out"


@pytest.mark.parametrize("kind", ["vit", "siglip", "convnext", "resnet"])
def test_predict_py_gives_our_probabilities(tmp_path, photos, kind):
    name = write_backbone(kind, tmp_path / "base")
    model = tuned(tmp_path / "model", clips.load(name, None, CPU))
    export.export(str(model), str(tmp_path / "out"), "onnx")
    exported = assert_same(model, tmp_path / "out", photos)
    assert exported.classnames == ["Ä b", *"bcdefg"]


def test_image_encoders_are_in_the_same_file(tmp_path, demo_clip, photos):
    changes = [
        {"input_size": [3, SIDE, SIDE], "crop_pct": 0.9, "crop_mode": "border"},
        {"input_size": [3, SIDE, SIDE], "crop_pct": 0.9, "interpolation": "bilinear"},
        {"input_size": [3, SIDE, SIDE], "crop_pct": 1.1, "crop_mode": "squash"},
    ]
    names = [
        write_encoder(tmp_path / str(seed), seed=seed, change={"pretrained_cfg": change})
        for seed, change in enumerate(changes)
    ]
    names.append(write_backbone("vit", tmp_path / "tower"))
    encoders = [image_encoders.load(name, CPU) for name in names]
    model = tuned(tmp_path / "model", demo_clip, encoders)
    words = ["export", str(model), str(tmp_path / "out"), "--format", "onnx"]
    assert main.main(words) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"model.onnx", "predict.py", "README.md"}
    assert "image_encoders" not in files
    assert_same(model, tmp_path / "out", photos)
    assert "4 further image encoders" in (tmp_path / "out" / "README.md").read_text()


def test_predict_py_runs_alone(tmp_path, of_demo, photos):
    model, exported = of_demo
    shutil.copytree(exported, tmp_path / "out")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(photos[0]).read_bytes()[:200])
    hide = "import sys; sys.modules |= dict.fromkeys(['torch', 'open_clip', 'latteclip']); "
    run = "import runpy; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    script = str(tmp_path / "out" / "predict.py")
    command = [sys.executable, "-c", hide + run, script, str(broken), *photos]
    done = subprocess.run(command, capture_output=True, check=True, encoding="utf-8")
    printed = done.stdout
    assert f"skipped: {broken}" in done.stderr and "Traceback" not in done.stderr
    ours = predict.Predictor(model, device="cpu", threads=1)(photos)
    for line, one in zip(printed.splitlines(), ours, strict=True):
        path, classname, probability = line.split("\t")
        assert (path, classname) == (one.path, one.classname)
        assert float(probability) == pytest.approx(one.probability, abs=1e-4)


@pytest.mark.parametrize("names", [["one", "two"], None])
def test_a_file_for_other_classes_is_one_sentence(tmp_path, of_demo, photos, names):
    out = shutil.copytree(of_demo[1], tmp_path / "out")
    graph = onnx.load(out / "model.onnx")
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {"classnames": json.dumps(names)} if names else {})
    onnx.save(graph, out / "model.onnx")
    command = [sys.executable, str(out / "predict.py"), photos[0]]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stdout == ""
    assert str(out / "model.onnx") in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_the_classifier_is_exact(of_demo, demo_clip, photos):
    """Features and scores of the graph fit each other by the classifier's file."""
    model, out = of_demo
    exported = module_of(out).Model(out / "model.onnx")
    pixels = {"pixel_values": demo_clip.preprocess(open_rgb(photos[0]))[None].numpy()}
    scores, _, features = exported.session.run(None, pixels)
    assert np.linalg.norm(features) == pytest.approx(1, abs=1e-5)
    head = load_classifier(model / clips.CLASSIFIER)[0].scores(torch.from_numpy(features))
    assert scores == pytest.approx(head.numpy(), abs=1e-4)
