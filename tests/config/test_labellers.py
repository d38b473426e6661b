"""The key `labellers`: which tables label images, and what each labeller asks."""

import pytest

from latteclip.config import jobs

WORDS = {"name": "words", "kind": "captions"}
OTHER = {**WORDS, "name": "other", "model": "an/lmm"}
SCORES = {"name": "scores", "kind": "likelihood"}


def test_a_labeller_changes_what_it_names_and_shares_the_rest(configured):
    other = {**OTHER, "prompt": "What is it?"}
    letters = {"name": "letters", "kind": "multiple_choice", "max_images": 25}
    decides = {"name": "decides", "kind": "decisions", "model": "m"}
    run = configured(
        captioner={"model": "llava-hf/llava-1.5", "revision": "abc"},
        labellers=[WORDS, other, letters, decides],
        scores={"kind": "likelihood", "max_images": 7},
    )
    dataset = run.dataset("demo")
    captioner = dataset.labeller("other").captioner
    assert (captioner.settings.model, captioner.settings.revision) == ("an/lmm", None)
    assert captioner.prompt == "What is it?"
    assert not dataset.labeller("other").leaked
    captioner = dataset.labeller("letters").captioner
    assert (captioner.scores.kind, captioner.max_images) == ("multiple_choice", 25)
    assert (captioner.settings.dtype, captioner.settings.revision) == ("float32", "abc")
    assert dataset.labeller("decides").captioner.settings.engine == "decisions"
    assert "an--lmm" in " ".join(run.hub_models)


def test_a_captioner_that_is_given_the_zero_shot_labels_is_marked(configured):
    run = configured(labellers=[WORDS, SCORES], prompts={"image": "Is it {}?"})
    leaked = [one["leaked"] for one in jobs.labellers(run.dataset("demo"))]
    assert leaked == [True, False]


@pytest.mark.parametrize(
    ("kind", "labeller"),
    [("images", ""), ("groups", ""), ("scores", ""), ("images", "other")],
)
def test_a_limited_asking_reads_a_classifier(configured, kind, labeller):
    """Others read none, so that a rerun of the classifier reruns no captions."""
    section = "scores" if kind == "scores" else "captioner"
    limit = {"max_images": 9}
    given = {} if labeller else {section: limit}
    limited = configured(labellers=[{**OTHER, **(limit if labeller else {})}], **given)
    unlimited = configured(labellers=[OTHER])
    runs = [run.dataset("demo") for run in (limited, unlimited)]
    captioners = [
        dataset.labeller(labeller).captioner if labeller else dataset.captioner(kind)
        for dataset in runs
    ]
    assert [captioner.max_images for captioner in captioners] == [9, None]
    assert not captioners[1].reads_pseudo_labels
