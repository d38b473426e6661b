import json
import os
import re
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from support import records
from support.made_results import CLASSNAMES, HOSTILE, Results
from support.pages import BOTH_KINDS, write, write_audit, write_unknown

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record
from latteclip.core.metadata import ClassesMetadata
from latteclip.evaluate import train_predictions
from latteclip.evaluate.results import AccuracyStatement, Estimate
from latteclip.labels import fusion_report
from latteclip.report import comparison, gallery, runs


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def written(results):
    return write(results, captions=BOTH_KINDS)


def test_the_table_has_the_figures_of_the_metrics_files(results, written):
    page, _ = written
    rows = page.tables["headline"][1:]
    assert [row[0][0].split()[0] for row in rows] == list(results.methods)
    zero_shot = results.metrics("zero_shot")[0]["acc1"]
    for method, row in zip(results.methods, rows, strict=True):
        metrics = results.metrics(method)
        acc1 = [one["acc1"] for one in metrics]
        assert float(row[1][1]) == len(metrics)
        assert float(row[2][1]) == pytest.approx(100 * statistics.mean(acc1))
        spread = f"± {100 * statistics.stdev(acc1):.1f}" if len(acc1) > 1 else ""
        assert row[2][0].split() == [f"{100 * statistics.mean(acc1):.1f}", *spread.split()]
        assert float(row[4][1]) == pytest.approx(100 * (statistics.mean(acc1) - zero_shot))
        for place, name in ((5, "acc5"), (6, "mean_per_class_recall")):
            mean = statistics.mean(one[name] for one in metrics)
            assert float(row[place][1]) == pytest.approx(100 * mean)


def write_fused(path, results, **labels):
    """Fused labels of the training images, in reverse order, and labels of other columns."""
    n = results.n_train
    columns = {field.name: pa.nulls(n, field.type) for field in tables.FUSED_LABELS}
    columns |= {
        "image_id": results.image_ids[:n][::-1],
        "fused_label": results.labels[:n][::-1],
    }
    columns |= {f"{name}_label": values[::-1] for name, values in labels.items()}
    tables.write(path, columns, tables.FUSED_LABELS)
    return str(path)


@pytest.mark.parametrize(
    ("source", "name"), [("caption", "captions alone"), ("lmm", "class scores alone")]
)
def test_labels_of_training_images_say_how_many_of_each_source_are_right(
    tmp_path, source, name
):
    results = Results(tmp_path)
    labels, before = (each[: results.n_train] for each in (results.labels, results.before))
    wrong, place = (labels + 1) % 7, np.arange(len(labels))
    alone, fused = (np.where(place < right, labels, wrong) for right in (20, 27))
    path = write_fused(tmp_path / "fused", results, **{source: alone, "fused": fused})
    first, *rest = (
        f"{100 * (x == labels).mean():.1f}\xa0%" for x in (before, alone, fused)
    )
    zero_shot = f"{first} of the pseudo-labels are right"
    others = f"{rest[0]} of the labels by {name}, and {rest[1]} of the fused labels"
    page, _ = write(results, fused_labels=path)
    assert f"{zero_shot}, {others}." in page.sections["pseudo-labels"]
    page, _ = write(results)
    assert f"{zero_shot}." in page.sections["pseudo-labels"]
    without = Results(tmp_path / "unlabelled", labelled=False)
    page, _ = write(without, fused_labels=write_fused(tmp_path / "other", without))
    assert "are right" not in page.sections["pseudo-labels"]


def test_labels_have_their_signals_and_the_answers_about_them(results, tmp_path):
    checked = records.checked([], answers=50, value=0.876, low=0.765, high=0.954)
    report = records.fusion(
        weights=fusion_report.Weights(0.5, 1.25, 0.0),
        gains=fusion_report.Gains(both=1.5, zero_shot=0.0, images=1.0),
        image_encoders=[fusion_report.EncoderReport("vit<&>", 0.75, 2.0, 9.0, 0.001)],
        answers=fusion_report.PersonAnswers({"a": "b", "c": None}, checked),
    )
    path = str(tmp_path / fusion_report.NAME)
    fusion_report.write_fusion_report(path, report)
    page, _ = write(results, fusion_report=path)
    rows = [[cell[0] for cell in row] for row in page.tables["signals"][1:]]
    assert [row[1:] for row in rows] == [
        ["0.50", "1.00"],
        ["1.25", "2.72"],
        ["0.75", "7.39"],
    ]
    assert rows[2][0] == "vit<&>"
    figures = ("2 training", "50 answers", "87.6", "76.5", "95.4")
    assert all(figure in page.sections["answers"] for figure in figures)


def test_the_classes_have_the_recalls_of_the_metrics_files(results, written):
    page, _ = written
    before, after = (
        {c["classname"]: c["recall"] for c in results.metrics(method)[0]["per_class"]}
        for method in ("zero_shot", "latteclip")
    )
    rows = page.tables["per-class"][1:]
    assert {row[0][0] for row in rows} == set(CLASSNAMES)
    for name, size, old, new, change, _ in rows:
        assert float(size[1]) == sum(results.labels[31:] == CLASSNAMES.index(name[0]))
        assert float(old[1]) == pytest.approx(100 * before[name[0]])
        assert float(new[1]) == pytest.approx(100 * after[name[0]])
        assert float(change[1]) == pytest.approx(float(new[1]) - float(old[1]))
    changes = [float(row[4][1]) for row in rows]
    assert changes == sorted(changes, reverse=True)


def test_ablations_name_what_differs_and_by_how_much(tmp_path):
    results = Results(tmp_path, methods=("latteclip", "latteclip_plain", "zero_shot"))
    methods = {
        "zero_shot": {"objective": "zero_shot"},
        "latteclip": {
            "objective": "latteclip",
            "switches": {"alpha": 0.1},
            "finetune": {"lr": 1},
        },
        "latteclip_plain": {
            "like": "latteclip",
            "objective": "latteclip",
            "switches": {"alpha": 0.1, "prototypes": False},
            "finetune": {"lr": 1},
        },
    }
    page, _ = write(results, config={"methods": methods}, baseline="latteclip")
    (row,) = page.tables["ablations"][1:]
    own, whole = (
        statistics.mean(one["acc1"] for one in results.metrics(method))
        for method in ("latteclip_plain", "latteclip")
    )
    assert [cell[0] for cell in row[:2]] == ["latteclip_plain", "prototypes: false"]
    assert float(row[4][1]) == pytest.approx(100 * (own - whole))
    header = [cell[0].strip() for cell in page.tables["headline"][0]]
    assert "over latteclip" in header
    place = header.index("over latteclip")
    assert float(page.tables["headline"][2][place][1]) == pytest.approx(100 * (own - whole))


def choose(results, method, seed, **more):
    """What select_model writes; its path."""
    path = results.folder / "selection.json"
    choice = {
        "dataset": "made",
        "method": method,
        "seed": seed,
        "reason": "It <i>agrees</i>.",
    }
    path.write_text(json.dumps(choice | more))
    return str(path)


def write_examples(results, labels):
    """Write the predictions of a model for the examples as `evaluate` does; return the path."""
    train, _, _ = runs.read_splits(results.images, results.pseudo_labels)
    chosen = train_predictions.choose_examples(train.confidence, train.pseudo_labels)
    path = str(results.folder / "train_predictions.parquet")
    columns = {
        "image_id": [train.image_ids[i] for i in chosen],
        "prediction": pa.array(labels, pa.int32()),
        "held_out": [False] * len(labels),
    }
    schema = tables.TRAIN_PREDICTIONS
    tables.write(path, columns, schema, ClassesMetadata(CLASSNAMES))
    return path


def test_the_page_leads_with_the_chosen_model_and_all_sections_are_about_it(tmp_path):
    results = Results(tmp_path)
    run = next(run for run in results.runs if (run.method, run.seed) == ("flyp", 1))
    labels = np.resize(np.arange(len(CLASSNAMES)), train_predictions.N_EXAMPLES)
    examples = write_examples(results, labels)
    results.runs = [replace(run, train_predictions=examples) for run in results.runs]
    page, text = write(results, selection=choose(results, "flyp", 1))
    first = page.sections[""]
    acc1 = 100 * results.metrics("flyp")[1]["acc1"]
    assert f"{acc1:.1f}" in first and "flyp (seed 1)" in first
    assert "It <i>agrees</i>." in page.sections["choice"]
    assert "latteclip predict results/made photos" in page.sections["next"]
    assert ("i", {}) not in page.elements
    names = [row[0][0] for row in page.tables["headline"][1:]]
    assert ["★" in name for name in names] == [False, True, False]
    assert text.count('class="shown"') == 1 and 'class="shown" data-method="flyp"' in text
    own = pd.read_parquet(run.predictions)["prediction"].to_numpy()
    truth = results.labels[results.n_train :]
    recall = {
        name: 100 * (own[truth == label] == label).mean()
        for label, name in enumerate(CLASSNAMES)
    }
    assert {row[0][0]: float(row[3][1]) for row in page.tables["per-class"][1:]} == recall
    sizes = dict(zip(CLASSNAMES, np.bincount(own, minlength=len(CLASSNAMES)), strict=True))
    assert {row[0][0]: float(row[4][1]) for row in page.tables["class-sizes"][1:]} == sizes
    true, taken_for, _, share = page.tables["pairs"][1]
    pair = [CLASSNAMES.index(cell[0]) for cell in (true, taken_for)]
    of_class = own[truth == pair[0]]
    assert float(share[1]) == pytest.approx(100 * (of_class == pair[1]).mean())
    predicted = [text for name, text in page.facts if name == "flyp"]
    assert [re.sub(" (right|wrong)$", "", text) for text in predicted[: len(labels)]] == [
        CLASSNAMES[label] for label in labels
    ]
    for section in ("classes", "confusions", "changes", "sizes", "sure", "gallery"):
        assert "flyp" in page.sections[section]
    assert page.sections["paper"].count("latteclip")  # the paper's method has one section


def test_an_unlabelled_page_has_the_model_its_comparison_and_unreadable_images(tmp_path):
    results = Results(tmp_path, labelled=False)
    compared = {
        "images": 120,
        "difference": 0.05,
        "standard_error": 0.02,
    }
    candidates = [{"method": "flyp", "seed": 0, "flags": [], "acc1": None, **compared}]
    results.write_index({"skipped": {".mov": 12, "other": 1}})
    corrupt = tmp_path / "corrupt.csv"
    corrupt.write_text("image_id,path,split,reason\n<b>.jpg,x,train,cannot be decoded\n")
    page, text = write(
        results,
        selection=choose(results, "flyp", 0, candidates=candidates),
        corrupt=str(corrupt),
    )
    step = page.sections["next"]
    assert "latteclip predict results/made photos" in step
    assert "latteclip audit results/made" in step
    (row,) = page.tables["candidates"][1:]
    assert [cell[0].strip() for cell in row[1:]] == ["0", "120", "+5.0", "2.0"]
    assert [cell[0].strip() for cell in page.tables["corrupt"][1]] == [
        *("<b>.jpg", "train", "cannot be decoded")
    ]
    assert [row[0][0] for row in page.tables["skipped"][1:]] == [".mov", "other"]
    assert text.index('id="images"') > text.index('id="captions"')
    corrupt.write_text("")
    with pytest.raises(UserError, match=r"corrupt\.csv"):
        write(results, corrupt=str(corrupt))


def write_statement(folder, **estimates):
    """What answers say of labels and of the run flyp, seed 0; the path."""
    path = folder / "accuracy.json"
    usual = {"dataset": "made", "method": "flyp", "seed": 0, "labels": None, "model": None}
    write_record(path, AccuracyStatement(**usual | estimates))
    return str(path)


def test_a_page_without_labels_begins_with_what_answers_tell_and_no_other_number(tmp_path):
    results = Results(tmp_path, labelled=False)
    report = str(tmp_path / fusion_report.NAME)
    fusion_report.write_fusion_report(report, records.fusion())
    files = {"fusion_report": report, "selection": choose(results, "flyp", 0)}
    page, _ = write(results, **files)
    first = page.sections[""]
    assert first.count("is not known") == 2 and "\xa0%" not in first
    assert "60 answers" in first and "13 points" in first
    step = page.sections["next"]
    assert step.index("latteclip teach results/made") < step.index("dataset=made")
    answers = fusion_report.PersonAnswers({"a": "b"}, records.checked(["a"]))
    fusion_report.write_fusion_report(report, records.fusion(answers=answers))
    estimates = {
        "labels": Estimate(0.796, 0.534, 0.828, 50, ["teach"]),
        "model": Estimate(0.713, 0.601, 0.802, 47, ["teach", "audit"]),
    }
    page, _ = write(results, **files)
    assert page.sections[""].count("is not known yet: too few answers") == 2
    stated = write_statement(tmp_path, **estimates)
    page, _ = write(results, statement=stated, **files)
    first = " ".join(page.sections[""].split())
    assert "79.6 % (53.4 to 82.8" in first and "50 answers of latteclip teach" in first
    assert "71.3 % (60.1 to 80.2" in first
    assert "47 answers of latteclip teach and latteclip audit" in first
    assert "is not known" not in first
    assert "latteclip audit results/made" in page.sections["next"]
    # What is known of one run says nothing of another.
    page, _ = write(results, statement=stated, fusion_report=report)
    assert "71.3" not in page.sections[""]


def test_labels_on_pictures_say_what_they_come_from(tmp_path):
    results = Results(tmp_path, labelled=False)
    n = results.n_train
    labels = (results.before[:n] + 1) % len(CLASSNAMES)
    fused = write_fused(tmp_path / "fused", results, fused=labels)
    train, _, _ = runs.read_splits(results.images, results.pseudo_labels)
    shown = [
        train.image_ids[i]
        for i in train_predictions.choose_examples(train.confidence, train.pseudo_labels)
    ]
    answers = fusion_report.PersonAnswers({shown[0]: "stripes", shown[1]: None})
    report = str(tmp_path / fusion_report.NAME)
    fusion_report.write_fusion_report(report, records.fusion(answers=answers))
    page, _ = write(results, fused_labels=fused, fusion_report=report)
    text = page.sections["gallery"]
    assert text.count("a person's answer") == 2 and "none of the classes" in text
    assert text.count("fused label") == len(shown) - 2
    page, _ = write(results)
    assert page.sections["gallery"].count("zero-shot label") == len(shown)


def test_all_but_the_labels_and_the_next_step_is_folded(written):
    page, _ = written
    order = list(page.sections)
    assert order[:3] == ["", "gallery", "next"]
    folds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "fold"]
    assert len(folds) == len(order) - 3 and not any("open" in a for a in folds)


def test_proposed_classes_say_whether_a_person_looked(tmp_path):
    results = Results(tmp_path, labelled=False)
    path = tmp_path / "discovery.json"
    for actions, said in ((0, "Nobody has looked"), (3, "3 actions")):
        path.write_text(json.dumps({"actions": actions}))
        page, _ = write(results, discovery=str(path))
        assert said in page.sections[""]
        asked = "latteclip classes results/made" in page.sections["next"]
        assert asked == (actions == 0)


def test_an_audit_stands_below_the_accuracies(results, written):
    page, _ = write(
        results, audit=write_audit(results.folder, "made", ["zero_shot", "flyp"])
    )
    assert [[cell[0].strip() for cell in row[:4]] for row in page.tables["audit"][1:]] == [
        ["flyp", "1", "51.0", "30.0 to 62.0"],
        ["zero_shot", "0", "41.0", "30.0 to 62.0"],
    ]
    assert "It <i>helped</i>." in page.sections["accuracy"]
    assert ("i", {}) not in page.elements
    names = [row[0][0] for row in page.tables["headline"][1:]]
    assert ["audited" in name for name in names] == [True, True, False]
    assert "audit" not in written[0].tables


def test_without_a_test_split_labels_tell_no_accuracy(tmp_path):
    page, _ = write(Results(tmp_path, n_test=0))
    assert not {"headline", "pairs"} & set(page.tables)


def test_no_text_becomes_an_element(written):
    page, text = written
    kinds = {tag for tag, _ in page.elements}
    assert not kinds & {"b", "u", "iframe", "object"}
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not [
        a for _, attributes in page.elements for a in attributes if a.startswith("on")
    ]
    assert HOSTILE in page.sections["classes"]
    assert "c{{ 7 * 7 }}" in page.sections["classes"]
    assert "<b>a group</b> of dots & 0" in page.sections["gallery"]
    assert HOSTILE not in text
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert any("onerror=alert(1)" in alt for alt in alts)


def test_the_page_fetches_nothing_runs_only_its_own_script_and_its_links_lead_somewhere(
    written,
):
    page, text = written
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name) or "#"
            is_inside = target.startswith(("#", "data:", "../index.html"))
            assert is_inside, (tag, target)
    assert not re.search(r"url\((?!#)|@import", text)
    policy = next(
        a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a
    )
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "script-src 'sha256-" in policy
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {
        a[n][1:]
        for _, a in page.elements
        for n in a
        if n.endswith("href")
        if a[n][0] == "#"
    }
    assert targets <= set(ids)


def test_the_page_and_the_summary_of_the_captions_agree(tmp_path):
    """Where a name inside a longer word, the case or a missing text make counts differ."""
    results = Results(tmp_path, classnames=["cat", "Dog", *CLASSNAMES[3:]])
    texts = ["category", "A CAT", "dogma", "a dog.", "hotdog", "", "", *["a CAT"] * 24]
    page, _ = write(results, captions={"image": texts, "group": texts[::-1]})
    summary = json.loads((tmp_path / "captions" / "summary.json").read_text())["images"]
    assert summary["share_naming_a_class"] == round(26 / 29, 4)
    rows = {row[0][0]: row[1][0] for row in page.tables["caption-statistics"]}
    assert rows["name a class"] == f"{100 * summary['share_naming_a_class']:.1f} %"
    for row, key in (
        ("asked for", "captions"),
        ("empty", "empty"),
        ("distinct texts", "distinct"),
    ):
        assert rows[row] == str(summary[key])
    assert rows["words, mean"] == f"{summary['words']['mean']:.1f}"
    for row, labels in (("pseudo-label", results.before), ("true class", results.labels)):
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        named = [
            results.classnames[label].lower() in own
            for own, label in zip(words, labels[:31], strict=True)
            if own
        ]
        assert rows[f"name their {row}"] == f"{100 * sum(named) / 29:.1f} %"
    (repeated,) = summary["most_repeated"]
    assert f"{repeated['caption']} {repeated['times']} times" in page.sections["captions"]


def test_without_labels_the_page_compares_predictions(tmp_path):
    results = Results(tmp_path, labelled=False)
    page, text = write(results, captions={"image": None})
    assert not {"classes", "confusions", "changes"} & set(page.sections)
    assert not {"headline", "per-class", "pairs"} & set(page.tables)
    assert "verdict" not in text.split("<body>")[1]  # nobody knows what is right
    said = {method: predictions(results, method) for method in results.methods}
    changed = dict(zip(results.methods, page.column("methods", 3), strict=True))
    for method, labels in said.items():
        share = 100 * (labels != said["zero_shot"]).mean()
        assert float(changed[method][1]) == pytest.approx(share)
    sizes = {
        row[0][0]: [float(cell[1]) for cell in row[2:]]
        for row in page.tables["class-sizes"][1:]
    }
    order = (
        "zero_shot",
        "latteclip",
        "flyp",
    )  # the main method beside what it is compared with
    for label, name in enumerate(CLASSNAMES):
        assert sizes[name] == [(said[method] == label).sum() for method in order]
    for old, new, size, _ in page.tables["shifts"][1:]:
        before, after = (CLASSNAMES.index(name[0]) for name in (old, new))
        both = (said["zero_shot"] == before) & (said["latteclip"] == after)
        assert float(size[1]) == both.sum()
    agreed = np.mean([len(set(labels)) == 1 for labels in zip(*said.values(), strict=True)])
    assert f"{100 * agreed:.1f}" in page.sections["disagreements"]
    disputed = sum(a.get("alt", "").startswith("Disputed image") for _, a in page.elements)
    assert disputed == 12


def predictions(results, method):
    """Of the first run of a method [N]."""
    path = next(run.predictions for run in results.runs if run.method == method)
    return pd.read_parquet(path)["prediction"].to_numpy()


def likely_unknown(page):
    """The images that a page shows as such, in their order."""
    alts = [a["alt"] for tag, a in page.elements if tag == "img"]
    return [alt.removeprefix("Likely unknown: ") for alt in alts if "Likely unknown" in alt]


def test_likely_unknown_images_stand_in_their_order(tmp_path):
    results = Results(tmp_path, labelled=False)
    page, _ = write(results, unknown=write_unknown(results))
    assert likely_unknown(page) == results.image_ids[::-1][: gallery.UNKNOWN]
    assert "Nobody has checked" in page.sections["unknown"]
    # Images with a score of the captioner come first.
    page, _ = write(results, unknown=write_unknown(results, [1.0, 3.0, 2.0]))
    ids = results.image_ids
    assert likely_unknown(page)[:5] == [ids[1], ids[2], ids[0], ids[-1], ids[-2]]


def test_noise_in_thousands_of_classes_makes_a_page_that_can_be_mailed(tmp_path):
    """Pictures that compress worst, everywhere."""
    results = Results(
        tmp_path,
        classnames=[f"a class with a long name, number {i}" for i in range(3000)],
        n_train=3000,
        n_test=6000,
        methods=("zero_shot", *(f"latteclip_{i}" for i in range(8)), "latteclip"),
        seeds=1,
    )
    for path in set(results.paths):
        noise = results.rng.integers(0, 256, (500, 500, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    page, text = write(results, captions=BOTH_KINDS, unknown=write_unknown(results))
    assert len(text.encode()) < 5_000_000
    assert len(page.tables["class-sizes"]) == 1 + comparison.ROWS


def test_the_costs_of_jobs_are_added_up(results):
    for number, (stage, gpus) in enumerate([("caption_images", 0), ("finetune", 1)]):
        path = results.folder / "benchmarks" / f"{stage}.jsonl"
        path.parent.mkdir(exist_ok=True)
        line = {"s": 60.0, "cpu_time": 90.0, "max_rss": 512.0 * (2 - number)}
        path.write_text(json.dumps(line | {"resources": {"gpu": gpus}}) + "\n")
        os.utime(path, (number, number))
    table = write(results)[0].tables["jobs"]
    rows = [[text.strip() for text, _ in row] for row in table]
    assert rows[2] == ["finetune", "", "1 min 00 s", "1 min 30 s", "1 min 00 s", "512 MiB"]
    assert rows[3] == ["in all", "", "2 min 00 s", "3 min 00 s", "1 min 00 s", "1.0 GiB"]
