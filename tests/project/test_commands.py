"""Commands in the documents: the program's parser takes them, and their keys are keys."""

import re
import shlex

import pytest
from support.tiny import ROOT

from latteclip.cli import main
from latteclip.config import layers
from latteclip.config.configuration import Configuration

# Of the documents' commands, those that no test runs, and the test that runs others with small
# models and images. The first pattern in a command counts.
UNRUN = {
    r"modern\.yaml": "needs models of the hub and a GPU",
    r"--sdm": "needs conda or Apptainer with internet",
    r"dataset=(dtd|stanford_cars|food101)|study\.yaml|status dtd": "needs models of the hub",
}
RUN_BY = {
    r"snakemake .*'decisions'": "workflow/test_decisions.py",
    r"latteclip classes results": "workflow/test_discover.py",
    r"snakemake .*discover": "workflow/test_discover.py",
    r"snakemake .*default-storage": "workflow/test_storage.py",
    r"snakemake .*(--snakefile|labels|image_dir)": "workflow/test_workflow.py",
    r"latteclip workflow": "workflow/test_projects.py",
    r"latteclip status .*--estimate": "cli/test_estimate.py",
    r"latteclip status": "cli/test_status.py",
    r"latteclip doctor": "cli/test_doctor.py",
    r"latteclip datasets": "data/test_datasets.py",
    r"latteclip captions show": "captions/test_show.py",
    r"latteclip predict": "deploy/test_predict.py",
    r"latteclip export": "deploy/test_export.py",
    r"latteclip labellers": "workflow/test_voters.py",
    r"latteclip labels export": "deploy/test_export_labels.py",
    r"latteclip teach": "audit/test_teach.py",
    r"latteclip audit": "audit/test_audit.py",
}
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
)


def commands(program):
    """Yield the page and the words of each command: its line, without a comment."""
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(rf"^(?:    )?({program} .+)$", text, re.M):
            if "..." not in line:
                yield page.name, shlex.split(line.split("  #")[0])[1:]


def cases(program):
    found = list(commands(program))
    assert found
    names = [f"{page}: {' '.join(words)}"[:80] for page, words in found]
    return pytest.mark.parametrize("words", [words for _, words in found], ids=names)


@cases("latteclip")
def test_the_program_takes_the_command(words, monkeypatch):
    main.parser().parse_args([word for word in words if not word.startswith("<")])


@cases("snakemake")
def test_the_configuration_has_the_keys_of_the_command(words, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "split_zhou_StanfordCars.json").touch()
    pairs, files, taking = [], [], None
    for word in words:
        if word.startswith("-"):
            taking = {"--config": pairs, "--configfile": files}.get(word)
        elif taking is not None and ("=" in word or taking is files):
            taking.append(word)
    pairs = [
        re.sub(r"^image_dir=.*", f"image_dir={tmp_path / 'photos'}", pair) for pair in pairs
    ]
    given = layers.given(pairs, [str(ROOT / file) for file in files])
    if given.get("dataset") == "mine":
        given.setdefault("image_dir", str(tmp_path / "photos"))
    Configuration(layers.defaults(project=None), given)


def test_every_command_is_run_by_a_test_or_has_a_reason_why_not():
    patterns, used = {**UNRUN, **RUN_BY}, set()
    for program in ("latteclip", "snakemake"):
        for page, words in commands(program):
            command = f"{program} {' '.join(words)}"
            found = next((each for each in patterns if re.search(each, command)), None)
            assert found, f"{page}: {command}"
            used.add(found)
    assert used == set(patterns)
    assert all((ROOT / "tests" / file).is_file() for file in RUN_BY.values())


def test_messages_and_pages_run_the_workflow_on_all_cores():
    sources = (
        p for p in (ROOT / "latteclip").rglob("*") if p.suffix in (".py", ".md", ".html")
    )
    texts = {path: path.read_text("utf-8") for path in (*sources, *PAGES)}
    for path, text in texts.items():
        if path.name != "benchmarks.md":  # which names the commands of its figures
            assert not re.search(r"(snakemake|latteclip workflow) -(j|-cores )\d", text), (
                path
            )
