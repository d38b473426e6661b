"""Which settings the jobs get: a key that a job does not get reruns nothing of it."""

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from latteclip.cli.rules import JobFunctions
from latteclip.config import jobs, registry

JOBS = {
    "pseudo_label_images": lambda d: jobs.sections(d, "clip", *jobs.CLASS_TEXTS),
    "captioner": lambda d: d.captioner("images").settings,
    "scores": lambda d: d.captioner("scores").scores,
    "training": lambda d: jobs.training(d.method("latteclip")),
    "fold": lambda d: jobs.fold(d, "0"),
}
BY_CLIP = {"pseudo_label_images", "training"}


@pytest.mark.parametrize(
    ("given", "reached"),
    [
        ({"finetune": {"lr": 0.5}}, {"training"}),
        ({"methods": {"latteclip": {"switches": {"alpha": 0.5}}}}, {"training"}),
        ({"clip": {"precision": "fp16"}}, BY_CLIP),
        ({"captioner": {"max_new_tokens": 9}}, {"captioner"}),
        ({"scores": {"max_images": 9}}, {"scores"}),
        ({"datasets": {"dtd": {"template": "{}"}}}, BY_CLIP),
        ({"compute": {"threads": 1, "checkpoint_minutes": 1}}, set()),
        ({"seeds": 9}, set()),  # one seed more trains no other again
        ({"selection": {"share": 0.2}}, {"fold"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_key_reaches_the_jobs_that_need_it(configured, given, reached):
    before, after = (run.dataset("dtd") for run in (configured(), configured(**given)))
    assert reached == {name for name, job in JOBS.items() if job(before) != job(after)}


def test_each_seed_leaves_out_its_fold(configured):
    dataset = configured(selection={"share": 0.25}, seeds="4,7,2").dataset("demo")
    for number, seed in enumerate(["4", "7", "2"]):
        assert jobs.fold(dataset, seed) == {"share": 0.25, "number": number}


def test_candidates_are_the_runs_that_have_a_classifier_and_read_no_label(configured):
    method = "flyp_supervised,latteclip,zero_shot_adapted"
    found = jobs.candidates(configured(method=method, seeds=2).dataset("demo"))
    runs = [(one["method"], one["seed"]) for one in found]
    assert runs == [("latteclip", 0), ("latteclip", 1), ("zero_shot_adapted", 0)]


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        *(("zero_shot", []), ("flyp", []), ("flyp_supervised", ["supervised"])),
        *((name, ["ours"]) for name in ("zero_shot_adapted", "flyp_fused", "latteclip")),
    ],
)
def test_what_is_not_in_the_paper_is_ours(configured, monkeypatch, method, flags):
    not_of_paper = replace(registry.OBJECTIVES["latteclip"], in_paper=False)
    monkeypatch.setitem(registry.OBJECTIVES, "latteclip", not_of_paper)
    assert jobs.flags(configured().dataset("demo").method(method)) == flags


def test_memory_grows_with_each_attempt(configured):
    memory = JobFunctions(configured(), SimpleNamespace()).memory(48_000, per_million=0)
    job = SimpleNamespace(dataset="demo")
    assert [memory(job, {}, attempt, 8) for attempt in (1, 3)] == [48_000, 108_000]


# --- code -----------------------------------------------------------------------------------------

EDITS = {  # a module: stages that an edit reruns, and stages that it does not
    "clip.clip_config": ("evaluate.evaluate", "report.summarize"),
    "labels.label_model": ("labels.fuse_labels", "train.finetune"),
    "report.gallery": ("report.report_dataset", "report.summarize"),
    "labels.fusion_report": ("report.report_dataset", "train.finetune"),
    "labels.guarantees": ("labels.fuse_labels", "train.finetune"),
    "core.files": ("captions.caption", None),  # which reads users' tables
    # It has no effect on results, or its values are parameters.
    "core.devices": (None, "train.finetune"),
    "config.keys": (None, "train.finetune"),
    "config.registry": ("captions.caption", "train.finetune"),
    "config.models": ("train.finetune", "report.summarize"),
    "train.objectives.latteclip": (None, "train.finetune"),  # code of the objective
}


def test_an_edit_reruns_the_stages_that_import_the_module():
    for edited, (rerun, spared) in EDITS.items():
        assert find_spec(f"latteclip.{edited}"), edited
        for stage, reruns in ((rerun, True), (spared, False)):
            found = jobs.closure(f"latteclip.{stage}") if stage else set()
            assert not stage or (f"latteclip.{edited}" in found) == reruns, edited


STAGE = """
from latteclip import (
    helper,
)
class Settings:
    pass
def stage(x):
    return helper.double(x)
"""
HELPER = "def double(x):\n    return 2 * x\n"
REWORDED = (
    STAGE.replace("pass", "'''Settings.'''").replace("(x):", "( x ):  # a comment"),
    HELPER.replace("    return", "    'Double.'\n\n    return"),
)


def test_code_is_compared_by_what_it_does(tmp_path, monkeypatch):
    def code(number, stage, helper):
        package = tmp_path / str(number) / "latteclip"
        package.mkdir(parents=True)
        (package / "stage.py").write_text(stage)
        (package / "helper.py").write_text(helper)
        monkeypatch.setattr(jobs.layers, "PACKAGE", package)
        return jobs.code_of.__wrapped__("latteclip.stage")

    before = code(0, STAGE.replace("pass", "'''Values.'''"), HELPER)
    assert code(1, *REWORDED) == before
    assert code(2, STAGE, HELPER.replace("2", "3")) != before  # also of what it imports


def test_published_means_stand_beside_runs_of_all_ten_alone(configured):
    figures = [
        {"method": "latteclip", "column": column, "value": 50, "source": "Table 9"}
        for column in ("dtd", "food101", "mean", "gain")
    ]

    def columns(**given):
        found = jobs.published(configured(table={"published": figures}, **given))
        return [figure["column"] for figure in found]

    assert columns(dataset="all") == ["dtd", "food101", "mean", "gain"]
    assert columns(dataset="dtd,demo") == ["dtd"]
    assert columns(dataset="all", limit=64) == []
