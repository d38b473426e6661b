"""The table over all datasets and methods."""

import json
from pathlib import Path

import pandas as pd
from support.pages import write_audit

from latteclip.captions.answers import AnswersMetadata
from latteclip.config.keys import PublishedSection
from latteclip.core import tables
from latteclip.core.tables import FLAGS
from latteclip.evaluate.results import FIGURES
from latteclip.report.provenance import AnswerTable
from latteclip.report.summarize import summarize


def write_metrics(folder, dataset, method, seed, acc1, flags=()):
    path = folder / f"{dataset}-{method}-{seed}.json"
    values = {"dataset": dataset, "method": method, "seed": seed, "flags": list(flags)}
    values |= dict.fromkeys(FIGURES, acc1) | {"images": 1234}
    path.write_text(json.dumps(values))
    return str(path)


def test_the_table_has_means_gains_choices_and_answers(tmp_path):
    paths = [
        write_metrics(tmp_path, "dtd", "zero_shot", 0, 0.50),
        write_metrics(tmp_path, "dtd", "latteclip", 0, 0.56),
        write_metrics(tmp_path, "dtd", "latteclip", 1, 0.58, ["collapsed", "ours"]),
        write_metrics(tmp_path, "mine", "latteclip", 0, None),
    ]
    chosen = {"dataset": "dtd", "method": "zero_shot", "seed": 0}
    selection = tmp_path / "selection.json"
    selection.write_text(json.dumps(chosen | {"reason": "Nothing beat it."}))
    audit = write_audit(tmp_path, "mine", ["latteclip"])
    csv, text = str(tmp_path / "s.csv"), str(tmp_path / "s.md")
    answers = [AnswerTable("mine/captions/images.parquet", str(tmp_path / "answers"))]
    asked = AnswersMetadata("a model", questions=7)
    tables.write(answers[0].table, tables.CAPTIONS.empty_table(), tables.CAPTIONS, asked)
    summarize(paths, [str(selection)], [audit], answers, "zero_shot", [], csv, text)
    rows = pd.read_csv(csv, dtype=str, keep_default_na=False).to_dict("records")
    first = {"method": "zero_shot", "acc1_mean": "50.00", "chosen": "seed 0"}
    second = {"flags": "ours collapsed", "seeds": "2", "acc1_mean": "57.00"}
    second |= {"acc1_std": "1.41", "acc1_gain": "7.00", "chosen": ""}
    third = {"dataset": "mine", "acc1_mean": ""}
    for row, wanted in zip(rows, (first, second, third), strict=True):
        assert {name: row[name] for name in wanted} == wanted
    lines = Path(text).read_text().splitlines()
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert {"latteclip", "ours collapsed", "57.0", "1.4", "7.0"} < set(cells)
    assert f"- collapsed: {FLAGS['collapsed']}." in lines
    assert "- chosen: dtd: Nothing beat it." in lines
    assert any(
        line.startswith("- asked for mine/captions/images.parquet: 7") for line in lines
    )
    assert "- audited: mine: It <i>helped</i>." in lines


def test_published_figures_stand_below_those_of_the_run_with_what_differs(tmp_path):
    accuracies = {
        ("dtd", "zero_shot"): [0.5],
        ("pets", "zero_shot"): [0.8],
        ("dtd", "latteclip"): [0.53, 0.55],
        ("pets", "latteclip"): [0.81, 0.83],
        ("pets", "flyp"): [0.7],
    }
    paths = [
        write_metrics(tmp_path, dataset, method, seed, acc1)
        for (dataset, method), values in accuracies.items()
        for seed, acc1 in enumerate(values)
    ]
    figures = [
        ("latteclip", "dtd", 53.5, 0.6, "Table 7"),
        ("latteclip", "pets", 84.5, 0.6, "Table 7"),
        ("zero_shot", "pets", 79, 0, "Table 7"),
        ("latteclip", "gain", 3, 0, "the abstract"),
        ("flyp", "mean", 60, 0, "Table 7"),  # the run has it on one dataset alone
    ]
    keys = ("method", "column", "value", "spread", "source")
    published = [PublishedSection(**dict(zip(keys, row, strict=True))) for row in figures]
    text = tmp_path / "s.md"
    summarize(paths, [], [], [], "zero_shot", published, str(tmp_path / "s.csv"), str(text))
    _, grid, differs = text.read_text().replace("\n\n\n", "\n\n").split("\n\n")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in grid.splitlines()
    ]
    assert rows[0] == ["method", "source", "dtd", "pets", "mean", "gain"]
    assert rows[2:] == [
        ["zero_shot", "this run", "50.00", "80.00", "65.00", "0.00"],
        ["zero_shot", "Table 7", "-", "79.00", "-", "-"],
        ["latteclip", "this run", "54.00 ± 1.41", "82.00 ± 1.41", "68.00", "3.00"],
        ["latteclip", "Table 7", "53.50 ± 0.60", "84.50 ± 0.60", "-", "-"],
        ["latteclip", "the abstract", "-", "-", "-", "3.00"],
        ["flyp", "this run", "-", "70.00", "-", "-"],
        ["flyp", "Table 7", "-", "-", "60.00", "-"],
    ]
    assert [line.split(": ", 1)[1] for line in differs.splitlines()] == [
        "latteclip, pets: 82.00 in this run, 2.50 lower than 84.50 in Table 7.",
        "zero_shot, pets: 80.00 in this run, 1.00 higher than 79.00 in Table 7.",
    ]
