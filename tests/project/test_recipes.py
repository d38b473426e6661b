"""Recipes of CONTRIBUTING for plug-ins, done with toys on a copy of the repository, which runs.

A recipe names the files that it touches in `code`. A toy may touch no others.
"""

import json
import re

import pyarrow.parquet as pq
import pytest
from support.checkout import DEMO, N_TRAIN, Checkout, edit, shrink
from support.tiny import ROOT

pytestmark = pytest.mark.slow
REGISTRY = "latteclip/config/registry.py"
OBJECTIVE = '''"""Images against their captions."""

from latteclip.train.objectives import base


class Toy(base.Objective):
    def loss(self, batch):
        targets = self.texts.tokenized.encode(self.texts.images[batch.index])
        loss = base.contrastive(batch.features, targets, batch.scale)
        return loss, batch.features.detach() @ self.classifier().T


def make(texts, switches, seed):
    return Toy(texts)
'''
ENGINE = '''"""An engine that counts."""

from latteclip.captions.engine import Response


class Toy:
    def answer(self, requests):
        for request in requests:
            yield request, Response(f"Texture number {request.key}.", "stop", 3)


def make(settings, threads, scoring):
    return Toy()
'''
KIND = """
    elif settings.kind == "even":  # the first class of images with an even number
        options = pa.array([[i % 2] for i in range(len(index))])
        scores = pa.array([[0.0]] * len(index))
"""
WRITER = """

def _write_lines(path, table, _):
    path.write_text("\\n".join(map(str, table["label"].to_pylist())))
"""


# Of each recipe: a new file, or a line after another one (at the end without one), by its path.
RECIPES = {
    "an objective": {
        "latteclip/train/objectives/toy.py": OBJECTIVE,
        REGISTRY: (
            "OBJECTIVES = {\n",
            '    "toy": ObjectiveRecord(\n'
            '        module="toy", pseudo_labels=PSEUDO_LABELS, captions=("image",)\n    ),\n',
        ),
    },
    "an engine": {
        "latteclip/captions/engines/toy.py": ENGINE,
        REGISTRY: ("ENGINES = {\n", '    "toy": EngineRecord(),\n'),
    },
    "a kind of labeller": {
        "latteclip/labels/write_votes.py": (
            '        options, scores = _best(features, about["logit_scale"] * classes.weights)\n',
            KIND.lstrip("\n"),
        ),
        REGISTRY: ("LABELLERS = {\n", '    "even": LabellerRecord(),\n'),
    },
    "an export format": {
        "latteclip/deploy/export_labels.py": [
            (
                '    return name if is_right else name.with_suffix(f".{kind.lower()}")\n',
                WRITER,
            ),
            (
                "WRITERS: dict[str, Callable[..., None]] = {\n",
                '    "lines": _write_lines,\n',
            ),
            ('    format: Literal["csv", ', '"lines", '),
        ],
    },
}


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


PLACES = {"<name>": "toy", "<kind>": "even"}


def named_files(title):
    """Return the files that a recipe of CONTRIBUTING names, of a toy in their places."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Recipes")[2]
    section = (
        text.partition(f"**Add {title}**")[2].partition("**Add ")[0].partition("\n\n`")[0]
    )
    files = set(re.findall(r"`((?:latteclip|workflow)/[^`]+\.\w+|Snakefile)`", section))
    for place, name in PLACES.items():
        files = {file.replace(place, name) for file in files}
    return files


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy in which all recipes were followed, and the workflow ran with what they added."""
    copy = Checkout(tmp_path_factory.mktemp("recipes") / "checkout")
    for recipe in RECIPES.values():
        follow(copy.root, recipe)
    edit(copy, DEMO, shrink)
    copy.ran(
        *("all", "results/demo/votes/evens.parquet"),
        *("--config", "dataset=demo", "seeds=1", "method=zero_shot,toy_trained"),
        "methods={toy_trained: {objective: toy}}",
        "captioner={engine: toy, model: toy}",
        "labellers=[{name: words, kind: captions}, {name: evens, kind: even}]",
    )
    return copy


def results(followed, name):
    return followed.root / "results" / "demo" / name


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_names_the_files_that_it_touches(title):
    assert named_files(title) == set(RECIPES[title])


def test_what_the_recipes_add_runs_with_the_rest(followed):
    metrics = json.loads(results(followed, "toy_trained/seed0/metrics.json").read_text())
    assert metrics["method"] == "toy_trained"
    selection = json.loads(results(followed, "selection.json").read_text())
    assert "toy_trained" in {row["method"] for row in selection["candidates"]}
    captions = pq.read_table(results(followed, "captions/images.parquet"))["caption"]
    assert captions.to_pylist() == [f"Texture number {i}." for i in range(N_TRAIN)]
    options = pq.read_table(results(followed, "votes/evens.parquet"))["options"]
    assert options.to_pylist() == [[i % 2] for i in range(N_TRAIN)]
    command = ("labels", "export", "results/demo", "--format", "lines", "--output", "x.txt")
    run = followed.latteclip(*command)
    assert run.returncode == 0, run.stdout
    assert len((followed.root / "x.txt").read_text().splitlines()) == N_TRAIN
