"""The page of a dataset."""

import json
import math
import re
import statistics

import numpy as np
import pyarrow as pa
import pytest
import torch
from support import records
from support.made_results import CLASSNAMES, HOSTILE, Results
from support.pages import write, write_audit, write_unknown

from latteclip.core import tables
from latteclip.core.files import write_record
from latteclip.evaluate.results import Audit, AuditedRun
from latteclip.labels import fusion_report
from latteclip.labels.guarantees import Interval
from latteclip.report import gallery, provenance, report_dataset


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def written(results):
    return write(results, captions=True)


def choose(results, method, seed, **more):
    """Write what select_model writes, and return its path."""
    path = results.folder / "selection.json"
    choice = {"dataset": "made", "method": method, "seed": seed}
    path.write_text(json.dumps(choice | {"reason": "It <i>agrees</i>."} | more))
    return str(path)


def fused(results, labels, **fields):
    """Write fused labels of the training images, in reverse order, and their report."""
    table = str(results.folder / "fused_labels.parquet")
    report = str(results.folder / fusion_report.NAME)
    n = results.n_train
    confidence = np.linspace(0, 1, n, dtype=np.float32)
    columns = {field.name: pa.nulls(n, field.type) for field in tables.FUSED_LABELS}
    columns |= {"image_id": results.image_ids[:n][::-1], "fused_label": labels[::-1]}
    columns["labeller_labels"] = labels[::-1, None].tolist()
    columns["fused_confidence"] = confidence[::-1]
    tables.write(table, columns, tables.FUSED_LABELS)
    write_record(report, records.fusion(**fields))
    return {"fused_labels": table, "fusion_report": report}


def test_the_page_has_its_parts_in_order_and_the_last_ones_are_folded(tmp_path):
    results = Results(tmp_path)
    files = fused(results, results.labels[: results.n_train])
    choice = choose(results, "flyp", 0)
    page, _ = write(results, selection=choice, **files)
    order = ["", "numbers", "gallery", "differing", "accuracy", "choice"]
    order += ["labellers", "unknown", "provenance", "next"]
    assert list(page.sections) == order
    folds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "fold"]
    assert len(folds) == 4 and not any("open" in a for a in folds)
    words, texts, together = page.tables["labellers-table"][1:]
    assert words[:2] == ["caption", "captions"]
    assert words[2] == "80.0 % (70.0 to 90.0), by votes and images"
    assert texts[2].startswith("unknown; 371 answers")
    assert together[2:] == ["unknown without answers", "100.0 %", "100.0 %"]


def test_the_page_leads_with_the_chosen_model(tmp_path):
    results = Results(tmp_path)
    compared = {"images": 120, "difference": 0.05, "standard_error": 0.02, "acc1": None}
    candidates = [{"method": "flyp", "seed": 0, "flags": [], **compared}]
    page, _ = write(results, selection=choose(results, "flyp", 1, candidates=candidates))
    first = page.sections["numbers"]
    acc1 = 100 * results.metrics("flyp")[1]["acc1"]
    assert f"{acc1:.1f}" in first and "flyp (seed 1): a CLIP that was trained" in first
    assert "It <i>agrees</i>." in page.sections["choice"]
    (row,) = page.tables["candidates"][1:]
    assert row[1:5] == ["0", "120", "+5.0", "2.0"]
    assert "latteclip predict results/made new-photos" in page.sections["next"]
    rows = page.tables["headline"][1:]
    assert ["★" in name for name, *_ in rows] == [False, True, False]
    both = [100 * one["acc1"] for one in results.metrics("flyp")]
    spread = f"{statistics.mean(both):.1f} ± {statistics.stdev(both):.1f}"
    assert rows[1][1:3] == ["2", spread]


def test_the_share_of_right_labels_stands_where_the_dataset_knows_it(tmp_path):
    results = Results(tmp_path)
    labels = results.labels[: results.n_train]
    right = np.where(np.arange(len(labels)) < 27, labels, (labels + 1) % 7)
    page, _ = write(results, **fused(results, right))
    assert f"{100 * 27 / 31:.1f}\xa0%\nof the labels" in page.sections["numbers"]
    page, _ = write(Results(tmp_path / "none", n_test=0))  # of images that taught
    assert "headline" not in page.tables


def test_without_labels_the_page_says_what_answers_tell_and_no_other_number(tmp_path):
    results = Results(tmp_path, labelled=False)
    labels = results.labels[: results.n_train]
    chosen = choose(results, "flyp", 0)
    page, text = write(results, selection=chosen, **fused(results, labels))
    first = page.sections["numbers"]
    assert first.count("not known yet") == 2 and "\xa0%" not in first
    assert "Answer 20 questions: latteclip teach results/made" in first
    assert "accuracy" not in page.sections  # it would say nothing
    assert 'class="verdict' not in text  # nobody knows what is right
    step = page.sections["next"]
    assert f"questions about {results.n_train} images" in step  # fewer than usual
    assert step.index("latteclip teach results/made") < step.index("dataset=made")
    files = fused(results, labels, answers={"a": "b"}, checking=["a"])
    page, _ = write(results, selection=chosen, **files)
    first = page.sections["numbers"]
    assert first.count("not known yet") == 2 and first.count("Too few answers") == 2
    assert "latteclip teach results/made" in page.sections["next"]
    known = Interval(0.796, 0.534, 0.828, 50)
    files = fused(results, labels, answers={"a": "b"}, labels_right=known)
    stated = tmp_path / "audit.json"
    run = AuditedRun("flyp", 0, Interval(0.713, 0.601, 0.802, 47), [])
    write_record(stated, Audit("made", "train", 90, 47, "", [run]))
    page, _ = write(results, selection=chosen, **files)
    assert "latteclip audit results/made" in page.sections["next"]
    page, _ = write(results, audit=str(stated), selection=chosen, **files)
    step = page.sections["next"]
    assert step.index("labels export") < step.index("predict")
    first = " ".join(page.sections["numbers"].split())
    assert "79.6 % of the labels are right 95 % interval: 53.4 to 82.8" in first
    assert "50 answers of latteclip teach" in first
    assert "71.3 % of new photographs are right" in first and "60.1 to 80.2" in first
    assert "47 answers of latteclip audit" in first
    assert "not known" not in first


def cards(page, section):
    """The images that a section shows, in their order."""
    return re.findall(r"^File(.+)$", page.sections[section], re.MULTILINE)


def test_each_class_shows_its_surest_and_its_most_doubtful_pictures(tmp_path):
    results = Results(tmp_path, labelled=False)
    labels = results.labels[: results.n_train]
    page, _ = write(results, **fused(results, labels))
    shown = page.sections["gallery"]
    ids = results.image_ids[: results.n_train]
    doubts = {c: np.flatnonzero(labels == c).mean() for c in set(labels)}
    assert len(doubts) > 2
    wanted = []
    for number in sorted(doubts, key=doubts.get):  # the least certain class first
        rows = np.flatnonzero(labels == number)[::-1]  # confidences rise with the rows
        doubtful = rows[gallery.SIDE :][-gallery.SIDE :]
        wanted += [ids[row] for row in (*rows[: gallery.SIDE], *doubtful)]
    assert cards(page, "gallery") == wanted
    in_heading = 1
    halved = sum(np.bincount(labels) > gallery.SIDE)
    assert shown.count("most doubtful") == in_heading + halved


def test_images_whose_labels_differ_from_zero_shot_stand_together(tmp_path):
    results = Results(tmp_path, labelled=False)
    labels = results.labels[: results.n_train]
    files = fused(results, labels)
    page, _ = write(results, **files)
    table = results.folder / "pseudo_labels.parquet"
    ids = results.image_ids[: results.n_train]
    zero_shot = tables.lookup_column(str(table), "pseudo_label", pa.array(ids)).to_numpy()
    differing = [ids[row] for row in np.flatnonzero(labels != zero_shot)[::-1]]
    assert differing
    assert cards(page, "differing") == differing[: gallery.DIFFERING]
    page, _ = write(results)  # without fused labels there is nothing to compare
    assert "differing" not in page.sections


def test_images_with_an_answer_are_not_shown_and_labels_say_what_they_are(tmp_path):
    results = Results(tmp_path, labelled=False)
    surest = results.image_ids[results.n_train - 1]
    labels = results.labels[: results.n_train]
    page, _ = write(results, **fused(results, labels))
    before = cards(page, "gallery")
    page, _ = write(results, **fused(results, labels, answers={surest: None}))
    after = cards(page, "gallery")
    assert surest in before and surest not in after
    assert "its fused label" in page.sections["gallery"]
    page, _ = write(results, training=["zero_shot", "recommended"])
    assert "its zero-shot label" in page.sections["gallery"]
    command = "--config dataset=made method=zero_shot,recommended"
    assert command in page.sections["next"]


def test_what_training_gained_is_said_by_held_out_images(results, monkeypatch):
    monkeypatch.setattr(report_dataset, "RECOMMENDED", "flyp")
    compared = {"images": 120, "difference": -0.05, "standard_error": 0.02}
    candidates = [
        {"method": method, "seed": 0, "flags": [], **numbers}
        for method, numbers in [
            ("flyp", dict.fromkeys(compared)),
            ("image_prototypes", compared),
        ]
    ]
    page, _ = write(results, selection=choose(results, "flyp", 0, candidates=candidates))
    gained = "Training gained +5.0 points"
    assert gained in page.sections["numbers"]
    page, _ = write(
        results, selection=choose(results, "zero_shot", 0, candidates=candidates)
    )
    assert "Training gained" not in page.sections["numbers"]


def test_the_command_that_trains_has_its_minutes_by_the_seconds_of_an_image(results):
    page, _ = write(results, training=["recommended"])
    # A search and one training of 15 epochs, each of three times the encoding.
    minutes = math.ceil(2 * 15 * 3 * results.n_train * 0.5 / 60)
    assert f"about {minutes} minutes on this machine" in page.sections["next"]


def test_an_audit_stands_below_the_accuracies(results):
    audit = write_audit(results.folder, "made", ["zero_shot", "flyp"])
    page, _ = write(results, audit=audit)
    assert page.tables["audit"][1:] == [
        ["flyp", "1", "51.0", "30.0 to 62.0"],
        ["zero_shot", "0", "41.0", "30.0 to 62.0"],
    ]
    assert "It <i>helped</i>." in page.sections["accuracy"]


def test_no_text_becomes_an_element_and_nothing_is_fetched_or_run(written):
    page, text = written
    assert 'class="verdict' in text  # the true classes are known
    kinds = {tag for tag, _ in page.elements}
    assert not kinds & {"b", "i", "u", "iframe", "object", "script"}
    names = [name for _, attributes in page.elements for name in attributes]
    assert not [name for name in names if name.startswith("on")]
    assert "<b>a image</b> of dots & " in page.sections["gallery"]
    assert any(name in page.sections["gallery"] for name in CLASSNAMES[1:3])
    assert HOSTILE not in text
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert any("onerror=alert(1)" in alt for alt in alts)
    for tag, attributes in page.elements:
        for name in ("src", "href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), (tag, target)
    assert not re.search(r"url\((?!#)|@import", text)
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    wanted = ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    assert policy.split("; ") == wanted
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_images_of_no_class_stand_in_their_order(tmp_path):
    def likeliest(page):
        alts = [a["alt"] for tag, a in page.elements if tag == "img"]
        start = "Likely of no class: "
        return [alt.removeprefix(start) for alt in alts if alt.startswith(start)]

    results = Results(tmp_path, labelled=False)
    page, _ = write(results)
    assert likeliest(page) == results.image_ids[::-1][: gallery.UNKNOWN]
    assert "Nobody has checked" in page.sections["unknown"]
    # Images with a score of the captioner come first.
    page, _ = write(results, unknown=write_unknown(results, [1.0, 3.0, 2.0]))
    ids = results.image_ids
    assert likeliest(page)[:5] == [ids[1], ids[2], ids[0], ids[-1], ids[-2]]


def test_provenance_has_the_problems_of_images(tmp_path):
    results = Results(tmp_path)
    results.write_index({"skipped": {".mov": 12}})
    corrupt = tmp_path / "corrupt.csv"
    corrupt.write_text("image_id,path,split,reason\n<b>.jpg,x,train,cannot be decoded\n")
    duplicates = str(tmp_path / "duplicates.parquet")
    first, second, *_ = results.image_ids
    columns = {"image_id": [first, second], "set": [0, 0]}
    tables.write(duplicates, columns, tables.DUPLICATES)
    page, _ = write(results, corrupt=str(corrupt), duplicates=duplicates)
    for words in (".mov (12)", "1 image (corrupt.csv)", "2 images in 1 set,"):
        assert words in page.sections["provenance"]
    assert provenance.versions()["torch"] == torch.__version__
