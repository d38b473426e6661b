"""The key `labellers`: which tables label images, and what each labeller asks."""

import pytest

from latteclip.config import jobs

WORDS = {"name": "words", "kind": "captions"}
SCORES = {"name": "scores", "kind": "likelihood"}
LIKELIHOOD = {"scores": {"kind": "likelihood"}}


def tables(run):
    return {each.name: each.table for each in run.dataset("demo").labellers}


def test_without_the_key_captions_or_class_scores_label(configured):
    assert tables(configured()) == {"caption": "captions/images.parquet"}
    assert tables(configured(**LIKELIHOOD)) == {"lmm": "class_scores.parquet"}


def test_the_first_captions_and_scores_are_those_of_the_run(configured):
    both = configured(labellers=[WORDS, SCORES], **LIKELIHOOD)
    assert tables(both) == {
        "words": "captions/images.parquet",
        "scores": "class_scores.parquet",
    }
    dataset = both.dataset("demo")
    assert dataset.columns == ["caption", "lmm"]
    assert dataset.own_labellers == []
    assert dataset.asker_of("scores") is dataset.asker
    assert dataset.caption_kinds == configured().dataset("demo").caption_kinds


def test_a_labeller_changes_what_it_names_and_shares_the_rest(configured):
    other = {**WORDS, "name": "other", "model": "an/lmm", "prompt": "What is it?"}
    letters = {"name": "letters", "kind": "multiple_choice", "max_images": 25}
    run = configured(
        captioner={"model": "llava-hf/llava-1.5", "revision": "abc"},
        labellers=[WORDS, other, letters],
        scores={"kind": "likelihood", "topk": 7},
    )
    dataset = run.dataset("demo")
    assert tables(run)["other"] == "labellers/other.parquet"
    assert tables(run)["letters"] == "labellers/letters.parquet"
    asker = dataset.asker_of("other")
    assert (asker.captioner.model, asker.captioner.revision) == ("an/lmm", None)
    assert asker.prompts.image == "What is it?"
    asker = dataset.asker_of("letters")
    scores = asker.scores
    assert (scores.kind, scores.max_images, scores.topk) == ("multiple_choice", 25, 7)
    assert (asker.captioner.dtype, asker.captioner.revision) == ("float32", "abc")
    assert "an--lmm" in " ".join(run.hub_models)


def test_a_decision_model_labels_by_its_own_engine(configured):
    run = configured(labellers=[WORDS, {"name": "a", "kind": "decisions", "model": "m"}])
    asker = run.dataset("demo").asker_of("a")
    assert (asker.captioner.engine, asker.scores.kind) == ("decisions", "decisions")


@pytest.mark.parametrize(
    ("kind", "labeller"),
    [("images", ""), ("groups", ""), ("scores", ""), ("images", "other")],
)
def test_a_limited_asking_reads_a_classifier_and_the_answers_of_a_person(
    configured, kind, labeller
):
    """Others read neither, so that a rerun of the classifier reruns no captions."""
    section = "scores" if kind == "scores" else "captioner"
    other = {**WORDS, "name": "other", "model": "an/lmm"}
    limit = {"max_images": 9}
    given = {} if labeller else {section: limit}
    limited = configured(labellers=[{**other, **(limit if labeller else {})}], **given)
    unlimited = configured(labellers=[other])
    askers = [run.dataset("demo").asker_of(labeller) for run in (limited, unlimited)]
    assert [asker.chooses(kind) for asker in askers] == [True, False]
    answers = "--answers results/demo/answers.json"
    assert [jobs.person_answers(asker, kind) for asker in askers] == [answers, ""]
    assert not askers[1].reads_pseudo_labels


def test_a_file_and_another_clip_label_with_tables_of_their_own(configured):
    mine = {"name": "mine", "kind": "file", "file": "mine.csv", "share": 0.5}
    clip = {"model": "ViT-L-14", "pretrained": "openai"}
    run = configured(labellers=[mine, {"name": "large", "kind": "zero_shot", **clip}])
    dataset = run.dataset("demo")
    assert dataset.columns == []
    assert dataset.caption_kinds == ["image", "group"]  # of latteclip alone
    alone = configured(labellers=[mine], method="image_prototypes")
    assert alone.dataset("demo").caption_kinds == []
    assert jobs.write_votes(dataset.labeller("mine")) == mine
    settings = jobs.write_votes(dataset.labeller("large"))["zero_shot"]
    assert settings["clip"]["model"] == "ViT-L-14"
    assert settings["class_texts"]["template"] == dataset.keys.template
    assert len(run.hub_models) == len(configured().hub_models) + 1
