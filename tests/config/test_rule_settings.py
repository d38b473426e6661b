"""What stages are given, and that they are given no more: a key that a stage does not see reruns
nothing of it."""

import pytest
import yaml
from support.tiny import ROOT

from latteclip.config import rule_settings
from latteclip.config.configuration import as_json

STAGES = {
    "pseudo_label_images": ("dtd",),
    "captioner": ("dtd",),
    "scores": ("dtd",),
    "groups": ("dtd",),
    "label_by_captions": ("dtd",),
    "score_unknown": ("dtd",),
    "finetune": ("dtd", "latteclip", "0"),
    "evaluate": ("dtd", "latteclip", "0"),
    "propagate_labels": ("dtd", "label_propagation"),
    "index_images": ("dtd",),
    "download_dataset": ("dtd",),
}


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        ({"finetune": {"lr": 0.5}}, {"finetune"}),
        ({"compute": {"cache_gib": 1}}, {"finetune"}),
        ({"methods": {"latteclip": {"switches": {"alpha": 0.5}}}}, {"finetune"}),
        ({"inference": {"topk": 7}}, {"pseudo_label_images", "evaluate", "propagate_labels"}),
        (
            {"inference": {"batch_size": 7}},
            {"pseudo_label_images", "evaluate", "label_by_captions"},
        ),
        (
            {"clip": {"precision": "fp16"}},
            {"pseudo_label_images", "label_by_captions", "finetune", "evaluate"},
        ),
        ({"unknown": {"share": 0.2}}, {"score_unknown"}),
        ({"captioner": {"max_new_tokens": 9}}, {"captioner"}),
        ({"groups": {"gap": 9}}, {"groups"}),
        ({"scores": {"topk": 9}}, {"scores"}),
        ({"methods": {"label_propagation": {"graph": {"gamma": 3}}}}, {"propagate_labels"}),
        ({"datasets": {"dtd": {"template": "{}"}}}, {"pseudo_label_images", "finetune"}),
        (
            {"datasets": {"dtd": {"template": ["{}", "a {}."]}}},
            {"pseudo_label_images", "finetune"},
        ),
        (
            {"datasets": {"dtd": {"class_synonyms": {"dotted": ["spotted"]}}}},
            {"pseudo_label_images", "finetune"},
        ),
        ({"datasets": {"dtd": {"licence": "none"}}}, {"download_dataset"}),
        ({"threads": {"finetune": 1}}, set()),
        ({"seeds": 9}, {"finetune", "evaluate"}),
        ({"selection": {"share": 0.2}}, {"finetune", "evaluate"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_key_reaches_the_stages_that_need_it(configured, given, stages):
    before, after = configured(), configured(**given)
    changed = {
        name
        for name, wildcards in STAGES.items()
        for stage in [getattr(rule_settings, name)]
        if as_json(stage(before, *wildcards)) != as_json(stage(after, *wildcards))
    }
    assert changed == stages


def test_textures_are_given_their_numbers(configured):
    found = rule_settings.generate_textures(configured(), "demo")
    assert found == {"train": 1500, "test": 2100, "gap": 0.85, "seed": 0}


def test_a_model_is_named_by_its_note(configured):
    note = "ViT-B-32@laion2b_s34b_b79k"
    found = rule_settings.hub_model(configured(), note, "clip")
    assert found == {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}


def test_prompts_are_those_of_the_dataset(configured):
    for kind in ("image", "group"):
        prompt = rule_settings.prompt(configured(), "demo", kind)
        assert prompt == configured().section("prompts", "demo")[kind]


@pytest.mark.parametrize(("kind", "is_asked"), [("likelihood", True), ("letters", False)])
def test_the_image_prompt_goes_with_likelihoods_alone(configured, kind, is_asked):
    found = rule_settings.scores(configured(scores={"kind": kind}), "demo")
    prompt = rule_settings.prompt(configured(), "demo", "image")
    assert found["prompt"] == (prompt if is_asked else "")
    assert (found["kind"], found["answer"]) == (kind, " a {} texture with")


def test_several_processes_start_under_torchrun_with_gpus_of_their_own(configured):
    assert rule_settings.finetune_command(configured(), "dtd") == "latteclip"
    command = rule_settings.finetune_command(configured(processes={"finetune": 4}), "dtd")
    assert command.startswith("python -m latteclip.core.gpus 4 torchrun ")
    assert "--nproc-per-node 4 -m -- latteclip" in command


def test_synonyms_are_named_where_there_are_any(configured):
    assert "class_synonyms" not in rule_settings.pseudo_label_images(configured(), "dtd")
    given = {"datasets": {"dtd": {"class_synonyms": {"737": ["jet"]}}}}
    found = rule_settings.pseudo_label_images(configured(**given), "dtd")
    assert found["class_synonyms"] == {"737": ["jet"]}


def test_each_seed_leaves_out_its_fold_in_training_and_is_judged_by_it(configured):
    found = configured(selection={"share": 0.25}, seeds="4,7,2")
    for number, seed in enumerate(["4", "7", "2"]):
        fold = {"share": 0.25, "number": number, "count": 3}
        assert rule_settings.finetune(found, "demo", "latteclip", seed)["fold"] == fold
        assert rule_settings.evaluate(found, "demo", "latteclip", seed)["fold"] == fold


def test_the_search_for_a_learning_rate_knows_no_fold(configured):
    one, more = (configured(seeds=number) for number in (1, 3))
    settings = [rule_settings.find_learning_rate(each, "dtd", "flyp") for each in (one, more)]
    assert settings[0] == settings[1]


def test_without_a_share_the_number_of_seeds_reruns_no_training(configured):
    one, more = (
        configured(selection={"share": 0}, seeds=number, method="latteclip") for number in (1, 3)
    )
    settings = [rule_settings.finetune(found, "demo", "latteclip", "0") for found in (one, more)]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("name", ["study", "ablations"])
def test_the_paper_s_runs_train_on_all_images(configured, name):
    given = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    assert rule_settings.fold(configured(**given), "dtd", "0")["share"] == 0
