"""The recipes of CONTRIBUTING, done on a copy of the repository with toys, which then run there.

A recipe names the files that it touches in `code`. A toy may touch no others.
"""

import json
import re

import pyarrow.parquet as pq
import pytest
from support.checkout import DEMO, N_TRAIN, Checkout, edit, shrink
from support.tiny import ROOT

pytestmark = pytest.mark.slow
METHODS = "latteclip/config/methods.py"
COMMANDS = "latteclip/cli/commands.py"
STAGES = "STAGES = {  # by command: the module of its function\n"
OBJECTIVE = '''"""Images against their captions."""

from latteclip.train.objectives import base


class Toy(base.Objective):
    def loss(self, batch):
        targets = self.texts.tokenized.encode(self.texts.images[batch.index])
        loss = base.contrastive(batch.features, targets, batch.scale)
        return loss, batch.features.detach() @ self.classifier().T, {}


def make(texts, switches, seed):
    return Toy(texts)
'''
ENGINE = '''"""An engine that counts."""

from latteclip.captions.requests import Response


class Toy:
    version = "toy 1"

    def answer(self, requests, would_wait=None):
        for request in requests:
            yield request, Response(f"Texture number {request.key}.", "stop", 3)


def make(settings, threads, pictures, scoring):
    return Toy()
'''
VOTER = '''"""Zero-shot labels that vote."""

import torch

from latteclip.core import tables
from latteclip.labels.label_sources import label_votes
from latteclip.labels.voters.base import Ballot


def vote(path, voted):
    column = tables.PSEUDO_LABELS, "image_id", "pseudo_label", voted.image_ids
    labels = torch.tensor(tables.lookup_column(path, *column).to_pylist())
    return Ballot.of("zero-shot labels", label_votes(labels, len(voted.classes)))
'''
KIND = '''"""A voter that names the first class of images with an even number."""

from latteclip.core import tables
from latteclip.labels.class_scores import read_class_scores
from latteclip.labels.label_sources import option_votes
from latteclip.labels.voters.base import Ballot


def write(images_path, settings, output, *, device, threads):
    index, _ = tables.read_unlabelled(images_path, training=True)
    n = len(index)
    columns = {name: [None] * n for name in tables.CLASS_SCORES.names}
    columns["image_id"] = index["image_id"]
    columns["options"] = [[i % 2] for i in range(n)]
    columns["log_probabilities"] = [[0.0]] * n
    tables.write(output, columns, tables.CLASS_SCORES)


def vote(path, voted):
    options, scores = read_class_scores(path, voted.image_ids)
    return Ballot.of("toys", option_votes(options, scores, len(voted.classes)))
'''
WRITER = """

def _write_lines(path, table, _):
    path.write_text("\\n".join(map(str, table["label"].to_pylist())))
"""
FORM = '''"""The classifier alone."""

import shutil


def write(opened, folder):
    shutil.copyfile(opened.folder / "open_clip_config.json", folder / "toy.json")
'''
STAGE = '''"""Count the pictures of an index."""

from latteclip.core import tables
from latteclip.core.files import write_json


def count_colours(images_path: str, output: str) -> None:
    """Write how many pictures there are."""
    table, _ = tables.read_unlabelled(images_path, training=True)
    write_json(output, {"pictures": len(table)})
'''
PAGE = '''"""A page of the classes."""

from latteclip.core import tables
from latteclip.core.files import write_text
from latteclip.report import render


def show_classes(images_path: str, output: str) -> None:
    """Write the page."""
    _, names = tables.read_unlabelled(images_path, training=True)
    write_text(output, render.render("show_classes.html", names=names))
'''
TEMPLATE = """{% extends "base.html" %}
{% block title %}Classes{% endblock %}
{% block body %}<main id="main">{{ names | join(", ") }}</main>{% endblock %}
"""
RULE = """

rule {name}:
    input:
        images="results/{{dataset}}/images.parquet",
        {templates}code=sources("{module}"),
    output:
        "results/{{dataset}}/{output}",
    log:
        "results/{{dataset}}/logs/{name}.log",
    resources:
        mem_mb=memory("{name}"),
        runtime=minutes("{name}"),
    shell:
        "latteclip {command} --images {{input.images}} --output {{output}} --log {{log}}"
"""


def rule(name, module, output, templates=""):
    command = name.replace("_", "-")
    return RULE.format(
        name=name, module=module, output=output, templates=templates, command=command
    )


# Of each recipe: a new file, or a line after another one (at the end without one), by its path.
RECIPES = {
    "a stage": {
        "latteclip/evaluate/count_colours.py": STAGE,
        COMMANDS: (STAGES, '    "count_colours": "latteclip.evaluate.count_colours",\n'),
        "workflow/rules/evaluation.smk": (
            "",
            rule("count_colours", "latteclip.evaluate.count_colours", "colours.json"),
        ),
        "latteclip/config/job_resources.py": (
            "RESOURCES = {\n",
            '    "count_colours": (1_000, 0, 5, 1_000),\n',
        ),
        "latteclip/cli/estimate.py": ("GROWS = {\n", '    "count_colours": IMAGES,\n'),
    },
    "an objective": {
        "latteclip/train/objectives/toy.py": OBJECTIVE,
        METHODS: (
            "OBJECTIVES = {\n",
            '    "toy": ObjectiveRecord(\n'
            '        module="toy", pseudo_labels=PSEUDO_LABELS, captions=("image",)\n    ),\n',
        ),
    },
    "an engine": {
        "latteclip/captions/engines/toy.py": ENGINE,
        METHODS: ("ENGINES = {\n", '    "toy": EngineRecord(),\n'),
    },
    "a source of labels": {
        "latteclip/labels/voters/toy.py": VOTER,
        METHODS: (
            "VOTERS = {\n",
            '    "toy": VoterRecord("toy", "pseudo_labels.parquet"),\n',
        ),
        "latteclip/core/tables.py": (
            "    lmm_confidence=pa.float32(),\n",
            "    toy_label=pa.int32(),\n    toy_confidence=pa.float32(),\n",
        ),
    },
    "a kind of voter": {
        "latteclip/labels/voters/even.py": KIND,
        METHODS: ("VOTER_KINDS = {\n", '    "even": VoterKind("even"),\n'),
    },
    "an export format": {
        "latteclip/deploy/export_labels.py": [
            (
                "    return NOT_IN_XML.sub(lambda match: ascii(match[0])[1:-1], text)\n",
                WRITER,
            ),
            (
                "WRITERS: dict[str, Callable[..., None]] = {\n",
                '    "lines": _write_lines,\n',
            ),
        ],
        COMMANDS: ('    format: Literal["csv", ', '"lines", '),
    },
    "a model format": {
        "latteclip/deploy/toy.py": FORM,
        "latteclip/deploy/export.py": [
            ("from latteclip.deploy import ", "toy, "),
            ("    format: Literal[", '"toy", '),
            ("FORMS = {", '"toy": toy.write, '),
        ],
    },
    "a page": {
        "latteclip/report/templates/show_classes.html": TEMPLATE,
        "latteclip/report/show_classes.py": PAGE,
        COMMANDS: (STAGES, '    "show_classes": "latteclip.report.show_classes",\n'),
        "workflow/rules/reports.smk": (
            "",
            rule(
                "show_classes",
                "latteclip.report.show_classes",
                "classes.html",
                "templates=unstored(stage_code.templates()),\n        ",
            ),
        ),
        "Snakefile": (
            "        rules.index_results.output,\n",
            '        [f"results/{each}/classes.html" for each in configuration.datasets],\n',
        ),
    },
}
MOST = {"an objective": 2, "an engine": 2, "a source of labels": 5, "a kind of voter": 2}


def follow(root, recipe):
    """Do in a copy of the repository what a recipe says."""
    for file, change in recipe.items():
        path = root / file
        if isinstance(change, str):
            assert not path.exists()
            path.write_text(change)
            continue
        for anchor, text in change if isinstance(change, list) else [change]:
            before = path.read_text()
            assert not anchor or before.count(anchor) == 1, f"{file}: {anchor}"
            after = before.replace(anchor, anchor + text) if anchor else before + text
            path.write_text(after)


def named_files(title):
    """Return the files that a recipe of CONTRIBUTING names, of a toy in their places."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Recipes")[2]
    section = (
        text.partition(f"**Add {title}**")[2].partition("**Add ")[0].partition("\n\n`")[0]
    )
    places = {
        "<name>": "toy",
        "<kind>": "even",
        "<package>": "evaluate",
        "<room>": "evaluation",
    }
    files = set(re.findall(r"`((?:latteclip|workflow)/[^`]+\.\w+|Snakefile)`", section))
    for place, name in places.items():
        files = {file.replace(place, name) for file in files}
    return files


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy in which all recipes were followed, and the workflow ran with what they added."""
    copy = Checkout(tmp_path_factory.mktemp("recipes") / "checkout")
    for recipe in RECIPES.values():
        follow(copy.root, recipe)
    edit(copy, DEMO, shrink)
    run = copy.snakemake(
        *("all", "results/demo/colours.json", "--config", "dataset=demo", "seeds=1"),
        *("method=zero_shot,image_prototypes,toy_trained", "votes=toy"),
        "methods={toy_trained: {objective: toy}}",
        "captioner={engine: toy, model: toy}",
    )
    assert run.returncode == 0, run.stdout
    return copy


def results(followed, name):
    return followed.root / "results" / "demo" / name


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_names_the_files_that_it_touches(title):
    files = set(RECIPES[title])
    assert named_files(title) == files
    assert len(files) <= MOST.get(title, len(files))


def test_every_recipe_is_followed():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert re.findall(r"^\*\*Add (.*?)\*\*", text, re.MULTILINE) == list(RECIPES)


def test_an_objective_trains_and_its_run_can_be_chosen(followed):
    metrics = json.loads(results(followed, "toy_trained/seed0/metrics.json").read_text())
    assert metrics["method"] == "toy_trained"
    history = pq.read_table(results(followed, "toy_trained/seed0/history.parquet"))
    assert len(history) > 1
    selection = json.loads(results(followed, "selection.json").read_text())
    assert "toy_trained" in {row["method"] for row in selection["candidates"]}


def test_an_engine_writes_captions(followed):
    captions = pq.read_table(results(followed, "captions/images.parquet"))
    assert captions["caption"].to_pylist() == [
        f"Texture number {i}." for i in range(N_TRAIN)
    ]
    summary = json.loads(results(followed, "captions/summary.json").read_text())
    assert summary["images"]["engine"] == "toy 1"


def test_a_source_of_labels_votes(followed):
    labels = pq.read_table(results(followed, "fused_labels.parquet"))
    zero_shot = pq.read_table(results(followed, "pseudo_labels.parquet")).to_pydict()
    label_of = dict(zip(zero_shot["image_id"], zero_shot["pseudo_label"], strict=True))
    wanted = [label_of[name] for name in labels["image_id"].to_pylist()]
    assert labels["toy_label"].to_pylist() == wanted
    assert labels["fused_label"] != labels["adapted_label"]  # the votes have an effect


def test_a_voter_is_of_a_new_kind(followed):
    target = "results/demo/voters/evens.parquet"
    run = followed.snakemake(target, "--config", "voters=[{name: evens, kind: even}]")
    assert run.returncode == 0, run.stdout
    options = pq.read_table(results(followed, "voters/evens.parquet"))["options"]
    assert options.to_pylist() == [[i % 2] for i in range(N_TRAIN)]


def test_labels_have_a_new_format(followed):
    output = followed.root / "labels.txt"
    command = (
        "labels",
        "export",
        "results/demo",
        "--format",
        "lines",
        "--output",
        "labels.txt",
    )
    run = followed.latteclip(*command)
    assert run.returncode == 0, run.stdout
    assert len(output.read_text().splitlines()) == N_TRAIN


def test_models_have_a_new_format(followed):
    run = followed.latteclip(
        *("export", "results/demo/toy_trained/seed0/model", "exported", "--format", "toy")
    )
    assert run.returncode == 0, run.stdout
    assert (followed.root / "exported" / "toy.json").is_file()


def test_a_page_and_a_stage_are_written(followed):
    assert "</main>" in results(followed, "classes.html").read_text()
    assert json.loads(results(followed, "colours.json").read_text()) == {
        "pictures": N_TRAIN
    }
