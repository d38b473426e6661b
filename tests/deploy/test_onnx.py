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
from support import records
from support.tiny import DEMO_CLIP, SIDE, write_backbone, write_encoder, write_index

from latteclip.cli import main
from latteclip.clip import finetuned, image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, load_classifier, save_classifier
from latteclip.clip.encode import class_embeddings
from latteclip.config.sections.textures import TexturesSection
from latteclip.core import tables
from latteclip.demo.generate_textures import generate_textures
from latteclip.deploy import export, onnx_graph, onnx_int8, predict
from latteclip.labels.fusion_report import NAME, Check, PersonAnswers, write_fusion_report
from latteclip.labels.guarantees import pac_threshold

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


def test_predict_py_runs_alone_in_about_forty_lines(tmp_path, of_demo, photos):
    model, exported = of_demo
    shutil.copytree(exported, tmp_path / "out")
    described = {"threshold": 0.5, "max_error": 0.1}
    onnx_graph.add_metadata(tmp_path / "out", "abstain", described)
    lines = (tmp_path / "out" / "predict.py").read_text().splitlines()
    assert len([line for line in lines if line]) <= 47
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
    assert len({one.probability < 0.5 for one in ours}) == 2
    for line, one in zip(printed.splitlines(), ours, strict=True):
        path, classname, probability = line.split("\t")
        abstained = " (abstained)" if one.probability < 0.5 else ""
        assert (path, classname) == (one.path, one.classname + abstained)
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


def test_the_threshold_of_a_guarantee_is_in_the_file(
    tmp_path, demo_clip, monkeypatch, capsys
):
    model = tuned(tmp_path / "model", demo_clip)
    monkeypatch.setattr(export, "refuse_without_guarantee", lambda *_, **__: None)
    monkeypatch.setattr(export, "abstention_threshold", lambda *_, **__: 0.625)
    words = ["export", str(model), str(tmp_path / "out"), "--format", "onnx"]
    assert main.main([*words, "--abstain", "0.05"]) == 0
    assert "0.6250" in capsys.readouterr().out
    assert "0.6250" in (tmp_path / "out" / "README.md").read_text()
    exported = module_of(tmp_path / "out").Model(tmp_path / "out" / "model.onnx")
    assert exported.threshold == 0.625


# --- int8 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """Results with the demo's CLIP as the chosen model, and an index of its textures."""
    root = tmp_path_factory.mktemp("textures")
    generate_textures(TexturesSection(train=200, test=200, gap=0.5, seed=9), root / "data")
    files = sorted(map(str, (root / "data").rglob("*.png")))
    splits = ["train" if row % 8 < 3 else "test" for row in range(len(files))]
    names = [Path(file).parent.name for file in files]
    classnames = sorted(set(names))
    labels = list(map(classnames.index, names))
    results = root / "results" / "mine"
    results.mkdir(parents=True)
    write_index(results / "images.parquet", files, splits, labels, classnames)
    clip = clips.load(f"local-dir:{DEMO_CLIP}", None, CPU)
    embeddings = class_embeddings(clip, TEMPLATE, classnames)
    clips.save(clip, Classifier.of(embeddings), classnames, TEMPLATE, results / "model")
    return results


def test_int8_has_the_same_classes_on_images_that_did_not_calibrate_it(
    textures, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["export", str(textures), str(out), "--format", "onnx", "--int8"]
    assert main.main(words) == 0
    printed = capsys.readouterr().out
    export.export(str(textures), str(tmp_path / "float"), "onnx")
    opened = finetuned.load(textures, CPU)
    pictures = onnx_int8.draw_pictures(opened, ())
    assert not set(pictures.calibrating) & set(pictures.compared)
    index = tables.read(textures / "images.parquet", tables.IMAGES).to_pylist()
    split_of = {row["path"]: row["split"] for row in index}
    assert {split_of[path] for path in pictures.compared} == {"test"}
    exported = module_of(out).Model(out / "model.onnx")
    before = module_of(out).Model(tmp_path / "float" / "model.onnx")
    assert exported.classnames == before.classnames
    assert exported.inputs == before.inputs
    sizes = [(place / "model.onnx").stat().st_size for place in (out, tmp_path / "float")]
    assert sizes[0] < sizes[1] / 2
    ours, theirs = (
        np.array([model(path)[0].argmax() for path in pictures.compared])
        for model in (before, exported)
    )
    agreement = 100 * (ours == theirs).mean()
    assert agreement >= 98
    accuracy = 100 * (theirs == np.array(pictures.labels)).mean()
    for text in (printed, (out / "README.md").read_text()):
        assert f"{agreement:.1f} % of {len(ours)} images" in text
        assert f"{accuracy:.1f} % of" in text


def test_int8_calibrates_by_a_folder_and_says_where_it_loses(
    textures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(onnx_int8, "AGREEMENT", 1.1)
    folder = tmp_path / "few"
    folder.mkdir()
    for path in predict.files_of(textures.parents[1] / "data")[:24]:
        (folder / Path(path).name).symlink_to(path)
    out = tmp_path / "out"
    words = ["export", str(textures), str(out), "--format", "onnx", "--int8"]
    assert main.main([*words, "--pictures", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "of 12 images that did not calibrate" in printed.err
    assert "labelled" not in printed.out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--format", "open_clip", "--int8"], "--format onnx"),
        (["--format", "onnx", "--int8", "--pictures", "{few}"], "--pictures"),
    ],
)
def test_what_cannot_be_quantised_is_refused(textures, tmp_path, options, named, capsys):
    few = tmp_path / "few"
    few.mkdir()
    words = [option.format(few=few) for option in options]
    assert main.main(["export", str(textures), str(tmp_path / "out"), *words]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def bounded_network(path):
    """Write a graph whose first feature is large before its activation bounds it."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(8, 3, 1, 1)).astype(np.float32)
    first[0] *= 300
    second = rng.normal(size=(8, 5)).astype(np.float32)
    second[0] = 0
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["pixel_values", "first"], ["features"], name="conv"),
        make("Clip", ["features", "low", "high"], ["bounded"], name="clip"),
        make("Flatten", ["bounded"], ["flat"], name="flatten"),
        make("MatMul", ["flat", "second"], ["scores"], name="classifier"),
    ]
    values = {"first": first, "second": second}
    values |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    of_shape = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "bounded",
        [of_shape("pixel_values", onnx.TensorProto.FLOAT, [1, 3, 1, 1])],
        [of_shape("scores", onnx.TensorProto.FLOAT, [1, 5])],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def test_int8_spends_its_numbers_on_what_an_activation_leaves(tmp_path, monkeypatch):
    def prepare(number):
        pixels = np.random.default_rng(int(number)).normal(size=(1, 3, 1, 1))
        return {"pixel_values": pixels.astype(np.float32)}

    numbers = [str(number) for number in range(400)]
    pictures = onnx_int8.Pictures(numbers[:100], numbers[100:], [None] * 300)
    agreements = []
    for bounds in (onnx_int8.BOUNDS, []):
        monkeypatch.setattr(onnx_int8, "BOUNDS", bounds)
        folder = tmp_path / str(len(bounds))
        folder.mkdir()
        bounded_network(folder / "model.onnx")
        loss = onnx_int8.quantise(folder, pictures, prepare)
        agreements.append(loss.agreement)
    assert agreements[0] > 0.95 > 0.8 > agreements[1]


def answered(textures, folder, n, **heads):
    """Results in which a person answers about n training images drawn at random.

    Every third answer is another class than the image's.
    """
    results = folder / "results" / "mine"
    shutil.copytree(textures, results)
    index = tables.read(results / "images.parquet", tables.IMAGES).to_pylist()
    drawn = [row for row in index if row["split"] == "train"][:n]
    names = sorted({row["classname"] for row in index})
    for row in drawn[::3]:
        row["label"] = (row["label"] + 1) % len(names)
    images = {row["image_id"]: names[row["label"]] for row in drawn}
    checked = records.checked(list(images), classifiers=heads)
    report = records.fusion(answers=PersonAnswers(images, checked))
    write_fusion_report(results / NAME, report)
    return results, drawn


def test_the_threshold_of_int8_is_that_of_its_own_probabilities(textures, tmp_path):
    results, drawn = answered(textures, tmp_path, 60)
    words = ["export", str(results), str(tmp_path / "out"), "--format", "onnx", "--int8"]
    assert main.main([*words, "--abstain", "0.3"]) == 0
    exported = module_of(tmp_path / "out").Model(tmp_path / "out" / "model.onnx")
    shares = np.array([exported(row["path"])[1] for row in drawn])
    is_wrong = shares.argmax(axis=1) != [row["label"] for row in drawn]
    expected = pac_threshold(shares.max(axis=1).astype(float), is_wrong, 0.3)
    assert 0 < expected < 1
    assert exported.threshold == pytest.approx(expected, abs=1e-6)
    ours = predict.Predictor(results, device="cpu", threads=1, abstain=0.3)
    assert exported.threshold != pytest.approx(ours.threshold, abs=1e-6)


def test_int8_has_no_guarantee_of_what_float32_was_checked_by(
    textures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(export.FORMS, "onnx", None)  # it is refused before the work
    head = Check([0.9] * 60, [True] * 60)
    results, _ = answered(textures, tmp_path, 60, image_prototypes=head)
    place = results / "classifiers" / "image_prototypes.safetensors"
    place.parent.mkdir()
    shutil.copy(results / "model" / clips.CLASSIFIER, place)
    words = ["export", str(results), str(tmp_path / "out"), "--format", "onnx", "--int8"]
    assert main.main([*words, "--abstain", "0.5"]) == 2
    assert "--int8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_int8_outside_of_results_asks_for_pictures(tmp_path, demo_clip, capsys):
    model = tuned(tmp_path / "model", demo_clip)
    words = ["export", str(model), str(tmp_path / "out"), "--format", "onnx", "--int8"]
    assert main.main(words) == 2
    assert "--pictures" in capsys.readouterr().err


def test_the_classifier_is_exact(of_demo, demo_clip, photos):
    """Features and scores of the graph fit each other by the classifier's file."""
    model, out = of_demo
    exported = module_of(out).Model(out / "model.onnx")
    pixels = onnx_graph.prepare([demo_clip], photos[0])
    scores, _, features = exported.session.run(None, pixels)
    assert np.linalg.norm(features) == pytest.approx(1, abs=1e-5)
    head = load_classifier(model / clips.CLASSIFIER)[0].scores(torch.from_numpy(features))
    assert scores == pytest.approx(head.numpy(), abs=1e-4)
