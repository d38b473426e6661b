"""The key `voters`: which tables voteand what each voter asks."""

import pytest

from latteclip.config import stage_params

WORDS = {"name": "words", "kind": "captions"}
SCORES = {"name": "scores", "kind": "likelihood"}
LIKELIHOOD = {"scores": {"kind": "likelihood"}}


def tables(configuration, dataset="demo"):
    return {voter.name: voter.table for voter in configuration.voters(dataset)}


def test_without_the_key_captions_or_class_scores_vote(configured):
    assert tables(configured()) == {"caption": "captions/images.parquet"}
    assert tables(configured(**LIKELIHOOD)) == {"lmm": "class_scores.parquet"}
    assert tables(configured(votes="caption", **LIKELIHOOD)) == {
        "caption": "captions/images.parquet"
    }


def test_the_first_captions_and_scores_are_those_of_today(configured):
    both = configured(voters=[WORDS, SCORES], **LIKELIHOOD)
    assert tables(both) == {
        "words": "captions/images.parquet",
        "scores": "class_scores.parquet",
    }
    assert both.votes_with("demo") == ["caption", "lmm"]
    assert both.own_voters("demo") == []
    for section in ("captioner", "scores", "prompts"):
        assert both.section(section, "demo", "scores") == both.section(section, "demo")
    assert both.caption_kinds("demo") == configured().caption_kinds("demo")


def test_a_voter_changes_what_it_says_and_shares_the_rest(configured):
    other = {**WORDS, "name": "other", "model": "an/lmm", "prompt": "What is it?"}
    letters = {
        **{"name": "letters", "kind": "multiple_choice", "max_images": 25},
        **{"captioner": {"dtype": "float16"}, "scores": {"topk": 7}},
    }
    found = configured(
        captioner={"model": "llava-hf/llava-1.5", "revision": "abc"},
        voters=[WORDS, other, letters],
        **LIKELIHOOD,
    )
    assert tables(found)["other"] == "voters/other.parquet"
    assert tables(found)["letters"] == "voters/letters.parquet"
    captioner = found.section("captioner", "demo", "other")
    assert (captioner["model"], captioner["revision"]) == ("an/lmm", None)
    assert stage_params.image_prompt(found, "demo", "other") == "What is it?"
    scores = found.section("scores", "demo", "letters")
    assert [scores[key] for key in ("kind", "max_images", "topk")] == [
        *("multiple_choice", 25, 7)
    ]
    captioner = found.section("captioner", "demo", "letters")
    assert (captioner["dtype"], captioner["revision"]) == ("float16", "abc")
    assert found.section("captioner", "demo")["dtype"] == "float32"
    assert "an--lmm" in " ".join(found.hub_models("captioner"))


def test_a_decision_model_votes_by_its_own_engine(configured):
    found = configured(voters=[WORDS, {"name": "a", "kind": "decisions", "model": "m"}])
    assert found.section("captioner", "demo", "a")["engine"] == "decisions"
    assert found.section("scores", "demo", "a")["kind"] == "decisions"


@pytest.mark.parametrize(
    ("kind", "voter"), [("images", ""), ("groups", ""), ("scores", ""), ("images", "other")]
)
def test_a_limited_asking_reads_a_classifier_and_the_answers_of_a_person(
    configured, kind, voter
):
    """Others read neither, so that a rerun of the classifier reruns no captions."""
    section = "scores" if kind == "scores" else "captioner"
    other = {**WORDS, "name": "other", "model": "an/lmm"}
    limit = {"max_images": 9}
    given = {section: limit}
    given = {} if voter else given
    limited = configured(voters=[{**other, **(limit if voter else {})}], **given)
    unlimited = configured(voters=[other])
    arguments = ("demo", kind, voter)
    classifier = "results/demo/classifiers/adapted.safetensors"
    assert stage_params.chosen_by(limited, *arguments) == [classifier]
    assert stage_params.chosen_by(unlimited, *arguments) == []
    answers = "--answers results/demo/answers.json"
    assert stage_params.person_answers(limited, *arguments) == answers
    assert stage_params.person_answers(unlimited, *arguments) == ""
    assert stage_params.caption_labels(unlimited, "demo") == []


def test_a_file_and_another_clip_vote_with_tables_of_their_own(configured):
    mine = {"name": "mine", "kind": "file", "file": "mine.csv", "share": 0.5}
    large = {
        "name": "large",
        "kind": "zero_shot",
        "model": "ViT-L-14",
        "pretrained": "openai",
    }
    found = configured(voters=[mine, large])
    assert found.votes_with("demo") == []
    assert found.caption_kinds("demo") == ["image", "group"]  # of latteclip alone
    assert configured(voters=[mine], method="image_prototypes").caption_kinds("demo") == []
    assert stage_params.write_votes(found, "demo", "mine") == mine
    settings = stage_params.write_votes(found, "demo", "large")["zero_shot"]
    assert settings["clip"]["model"] == "ViT-L-14"
    assert settings["class_texts"] == {"template": found.section("template", "demo")}
    assert stage_params.votes_file(found, "demo", "mine") == ["mine.csv"]
    assert len(found.hub_models("clip")) == len(configured().hub_models("clip")) + 1
