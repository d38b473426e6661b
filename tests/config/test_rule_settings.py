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


def test_several_processes_start_under_torchrun_with_gpus_of_their_own(configured):
    assert rule_settings.finetune_command(configured(), "dtd") == "latteclip"
    command = rule_settings.finetune_command(configured(processes={"finetune": 4}), "dtd")
    assert command.startswith("python -m latteclip.core.gpus 4 torchrun ")
    assert "--nproc-per-node 4 -m -- latteclip" in command


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


@pytest.mark.parametrize("name", ["study", "ablations"])
def test_the_paper_s_runs_train_on_all_images(configured, name):
    given = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    assert rule_settings.fold(configured(**given), "dtd", "0")["share"] == 0
