import csv
import json
import re
import shutil
import sys

import open_clip
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from support.tiny import (
    BACKBONES,
    ENCODER_WIDTH,
    ROOT,
    WIDTH,
    benchmark,
    write_backbone,
    write_encoder,
    write_index,
    write_pictures,
)

from latteclip.clip import finetuned, image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config import checks, layers
from latteclip.config.configuration import Configuration

CPU = torch.device("cpu")


def test_every_step_of_the_benchmark_runs(tmp_path):
    scale = benchmark("scale")
    scale.TRAINED, scale.BATCH = 6, 32
    place = scale.Place(tmp_path, 200, 5)
    for number in scale.chosen([]):
        step = scale.STEPS[number]
        if step.run is not scale.plan_jobs:  # dry runs have tests of their own
            step.run(place)()
    results = place.checkout / "results" / "scale"
    captions = pq.read_table(results / "captions" / "images.parquet")
    index = pq.read_table(results / "images.parquet")
    assert len(index) == 202
    first = index.filter(pc.invert(pc.match_substring(index["image_id"], "new_")))
    assert len(captions) == first["split"].to_pylist().count("train")
    assert (
        pq.read_metadata(results / "duplicates.parquet").num_rows == 0
    )  # by hashes alone 10
    assert (results / "report.html").is_file()
    assert (
        sorted((results / "trained" / "checkpoint").iterdir())[-1].name >= "step-00000006"
    )
    assert pq.read_table(results / "predicted.parquet").num_rows == 200
    assert len((results / "labels.csv").read_text().splitlines()) == 1 + len(captions)


def test_some_steps_of_the_benchmark_run_on_an_index_without_images(tmp_path):
    scale = benchmark("scale")
    place = scale.Place(tmp_path, 200, 5)
    for number in scale.chosen(["propagate_labels", "write_pseudo_labels"]):
        scale.STEPS[number].run(place)()
    results = place.checkout / "results" / "scale"
    assert not place.images.exists()
    assert pq.read_metadata(results / "propagated.parquet").num_rows == 60


def test_host_memory_is_measured_of_all_processes(tmp_path, capsys, monkeypatch):
    memory = benchmark("host_memory")
    arguments = [
        "--workers",
        "2",
        "--images",
        "12",
        "--batch-size",
        "4",
        "--megapixels",
        "0.1",
    ]
    monkeypatch.setattr(sys, "argv", ["host_memory.py", *arguments, "timm:test_vit"])
    memory.main()
    [line] = capsys.readouterr().out.splitlines()
    before, peak, loading = (
        float(n.replace(",", "")) for n in re.findall(r" ([\d,]+),", line)[:3]
    )
    assert peak == pytest.approx(before + loading, abs=2)
    assert before > 0
    assert 0 <= loading < 4000


CLASSIFIER = {"classnames": ["cat", "dog", "cow"], "template": "a {}."}


def write_accuracies(results, method, *accuracies):
    for seed, accuracy in enumerate(accuracies):
        folder = results / method / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({"acc1": accuracy}))


@pytest.fixture
def compared(tmp_path):
    """Results with a model of each of the three methods that benchmarks/student.py compares."""
    results = tmp_path / "results"
    write_accuracies(results, "image_prototypes", 0.70, 0.72)
    write_accuracies(results, "image_prototypes_encoders", 0.80, 0.82)
    write_accuracies(results, "student", 0.76, 0.78)
    choice = {"method": "student", "reason": "It agrees with more votes."}
    (results / "selection.json").write_text(json.dumps(choice))
    pictures = write_pictures(tmp_path / "pictures", 5)
    splits = ["train", "test", "test", "test", "test"]
    write_index(
        results / "images.parquet", pictures, splits, [0] * 5, ["cat", "dog", "cow"]
    )
    clip = clips.load(write_backbone("vit", tmp_path / "clip"), None, CPU)
    encoder = image_encoders.load(write_encoder(tmp_path / "encoder"), CPU)
    for method, widths in (
        ("image_prototypes", []),
        ("image_prototypes_encoders", [ENCODER_WIDTH]),
    ):
        folder = results / method / "seed0" / "model"
        clips.save_network(clip, folder)
        described = CLASSIFIER | {finetuned.ENCODER_WIDTHS: widths}
        classifier = Classifier.of(torch.ones(3, WIDTH + sum(widths)))
        save_classifier(folder / clips.CLASSIFIER, classifier, described)
        for number in range(len(widths)):
            image_encoders.save(encoder, folder / image_encoders.SUBFOLDER / str(number))
    classifier = Classifier.of(torch.ones(3, ENCODER_WIDTH))
    folder = results / "student" / "seed0" / "model"
    finetuned.save_student(encoder, classifier, CLASSIFIER, 20.0, folder)
    return results


def test_a_student_is_compared_in_accuracy_and_time(compared, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["student.py", str(compared), "--images", "4"])
    benchmark("student").main()
    lines = capsys.readouterr().out.splitlines()
    assert "student: 77.0 % (76.0, 78.0)" in lines
    assert "the student has 60 % of the lead of 10.0 points" in lines
    assert "chosen: student. It agrees with more votes." in lines
    assert "latteclip predict, 4 images:" in lines
    assert "networks alone, batches of 8:" in lines
    timed = [line for line in lines if line.endswith(" times the student")]
    names = [line.split(":")[0].strip() for line in timed]
    assert names == 2 * ["image_prototypes", "image_prototypes_encoders", "student"]
    assert [line.split()[-4] for line in timed if "student:" in line] == ["1.0", "1.0"]


def test_a_student_is_not_compared_without_the_joint_predictor(compared, monkeypatch):
    shutil.rmtree(compared / "image_prototypes_encoders")
    monkeypatch.setattr(sys, "argv", ["student.py", str(compared)])
    with pytest.raises(SystemExit, match="image_prototypes_encoders"):
        benchmark("student").main()


def test_the_folder_of_the_laptop_is_one_that_a_run_can_start_in(tmp_path, monkeypatch):
    config, _ = BACKBONES["vit"]
    (tmp_path / "tiny-of-the-laptop.json").write_text(json.dumps(config))
    for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):  # as before the test afterwards
        monkeypatch.setattr(
            open_clip.factory, name, getattr(open_clip.factory, name).copy()
        )
    open_clip.add_model_config(tmp_path / "tiny-of-the-laptop.json")
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "photos" / name, 3)
    place = tmp_path / "place"
    words = [str(place), str(tmp_path / "photos"), "--images", "8"]
    words += ["--model", "tiny-of-the-laptop"]
    monkeypatch.setattr(sys, "argv", ["laptop.py", *words])
    benchmark("laptop").main()
    monkeypatch.chdir(place)
    given = layers.given([], ["config.yaml"])
    configuration = Configuration(layers.defaults(), given)
    checks.refuse_unready(configuration)
    assert configuration.datasets == ["photos"]
    name = configuration.section("clip", "photos")["model"]
    assert clips.load(name, None, CPU).config["embed_dim"] == WIDTH
    with (place / "captions.csv").open(newline="") as file:
        captions = {row["image_id"]: row["caption"] for row in csv.DictReader(file)}
    assert captions.keys() == {path.name for path in (place / "photos").glob("*.png")}
    named = [caption.split()[-1] for caption in captions.values()]
    assert sorted(named) == 5 * ["cat."] + 3 * ["dog."]
