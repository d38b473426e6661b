"""Which files and settings the stages get: a key that a stage does not get reruns nothing of it."""

import pytest

from latteclip.config import stage_params

STAGES = {
    "pseudo_label_images": lambda c: stage_params.pseudo_label_images(c, "dtd"),
    "captioner": lambda c: c.section("captioner", "dtd"),
    "scores": lambda c: c.section("scores", "dtd"),
    "fuse_labels": lambda c: stage_params.clip_encoder(c, "dtd"),
    "finetune": lambda c: stage_params.finetune(c, "dtd", "latteclip", "0"),
    "evaluate": lambda c: stage_params.evaluate(c, "dtd", "latteclip", "0"),
    "download_dataset": lambda c: stage_params.download_dataset(c, "dtd"),
}
ENCODING = {"pseudo_label_images", "evaluate", "fuse_labels"}


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        ({"finetune": {"lr": 0.5}}, {"finetune"}),
        ({"compute": {"micro_batch": 1}}, {"finetune"}),
        ({"methods": {"latteclip": {"switches": {"alpha": 0.5}}}}, {"finetune"}),
        ({"inference": {"topk": 7}}, {"pseudo_label_images", "evaluate"}),
        ({"inference": {"batch_size": 7}}, ENCODING),
        ({"clip": {"precision": "fp16"}}, {*ENCODING, "finetune"}),
        ({"captioner": {"max_new_tokens": 9}}, {"captioner"}),
        ({"scores": {"topk": 9}}, {"scores"}),
        ({"datasets": {"dtd": {"template": "{}"}}}, {"pseudo_label_images", "finetune"}),
        (
            {"datasets": {"dtd": {"class_synonyms": {"dotted": ["spotted"]}}}},
            {"pseudo_label_images", "finetune"},
        ),
        ({"datasets": {"dtd": {"licence": "none"}}}, {"download_dataset"}),
        ({"threads": {"finetune": 1}}, set()),
        ({"seeds": 9}, set()),  # one seed more trains no other again
        ({"selection": {"share": 0.2}}, {"finetune", "evaluate"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_key_reaches_the_stages_that_need_it(configured, given, stages):
    before, after = configured(), configured(**given)
    assert stages == {
        name for name, stage in STAGES.items() if stage(before) != stage(after)
    }


def test_each_seed_leaves_out_its_fold_in_training_and_is_judged_by_it(configured):
    found = configured(selection={"share": 0.25}, seeds="4,7,2")
    for number, seed in enumerate(["4", "7", "2"]):
        fold = {"share": 0.25, "number": number}
        assert stage_params.finetune(found, "demo", "latteclip", seed)["fold"] == fold
        assert stage_params.evaluate(found, "demo", "latteclip", seed)["fold"] == fold


def test_candidates_are_the_runs_that_have_a_classifier_and_read_no_label(configured):
    method = "flyp_supervised,latteclip,zero_shot_adapted"
    found = configured(method=method, seeds=2)
    runs = [(one["method"], one["seed"]) for one in stage_params.candidates(found, "demo")]
    assert runs == [("latteclip", 0), ("latteclip", 1), ("zero_shot_adapted", 0)]
