"""Which files and settings the stages get: a key that a stage does not get reruns nothing of it."""

import json

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
        ({"seeds": 9}, {"finetune", "evaluate"}),
        ({"selection": {"share": 0.2}}, {"finetune", "evaluate"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_key_reaches_the_stages_that_need_it(configured, given, stages):
    before, after = configured(), configured(**given)
    assert stages == {
        name for name, stage in STAGES.items() if stage(before) != stage(after)
    }


def test_a_limited_run_shares_downloads_and_answers_and_nothing_else(configured):
    found = configured(dataset="dtd", limit=64)
    assert found.datasets == ["dtd_64"]
    assert stage_params.made_folder(found, "dtd_64") == ["resources/dtd/data"]
    assert (
        stage_params.answer_store(found, "dtd_64", "images")
        == "resources/dtd/captions/images"
    )
    assert stage_params.captions(found, "dtd_64")[0].startswith("results/dtd_64/")
    assert stage_params.limit(found) == "--limit 64"
    assert stage_params.limit(configured()) == ""


def test_each_seed_leaves_out_its_fold_in_training_and_is_judged_by_it(configured):
    found = configured(selection={"share": 0.25}, seeds="4,7,2")
    for number, seed in enumerate(["4", "7", "2"]):
        fold = {"share": 0.25, "number": number, "count": 3}
        assert stage_params.finetune(found, "demo", "latteclip", seed)["fold"] == fold
        assert stage_params.evaluate(found, "demo", "latteclip", seed)["fold"] == fold


def test_the_search_for_a_learning_rate_is_the_same_for_any_seeds(configured):
    one, more = (configured(seeds=number) for number in (1, 3))
    settings = [
        stage_params.find_learning_rate(each, "dtd", "flyp") for each in (one, more)
    ]
    assert settings[0] == settings[1]


@pytest.mark.parametrize(
    ("method", "images", "groups", "labels"),
    [
        ("flyp", False, False, False),
        ("latteclip", True, True, False),
        ("latteclip_no_image_description", False, True, False),
        ("flyp_fused", False, False, True),
    ],
)
def test_a_method_reads_what_it_trains_on(configured, method, images, groups, labels):
    found = configured(method=f"zero_shot,{method}")
    assert found.reads_captions(method, "image", "demo") == images
    assert found.reads_captions(method, "group", "demo") == groups
    assert found.reads_fused_labels(method, "demo") == labels


def test_candidates_are_the_runs_that_have_a_classifier_and_read_no_label(configured):
    method = "flyp_supervised,latteclip,zero_shot_adapted"
    found = configured(method=method, seeds=2)
    runs = [(one["method"], one["seed"]) for one in stage_params.candidates(found, "demo")]
    assert runs == [("latteclip", 0), ("latteclip", 1), ("zero_shot_adapted", 0)]


def test_a_model_is_chosen_where_there_are_several_and_images_to_judge(configured):
    def selection(key="demo", **given):
        return stage_params.selection_if_any(configured(**given), key)

    assert selection() == ["results/demo/selection.json"]
    assert selection(method="zero_shot,flyp_supervised") == []
    assert selection(selection={"share": 0}) == []
    only_demo = {"dataset": "demo,dtd", "datasets": {"demo": {"selection": {"share": 0}}}}
    assert selection(**only_demo) == []
    assert selection("dtd", **only_demo) == ["results/dtd/selection.json"]
    assert selection(table={"name": "study"}) == ["results/demo/selection-study.json"]


@pytest.mark.parametrize(
    ("methods", "main", "paper"),
    [
        ("zero_shot,latteclip,flyp_supervised", "latteclip", "latteclip"),
        ("latteclip_no_captions,flyp", "flyp", None),
        ("zero_shot", "zero_shot", None),
    ],
)
def test_the_methods_that_have_a_part_of_a_page(configured, methods, main, paper):
    values = json.loads(stage_params.report_dataset(configured(method=methods), "demo"))
    assert (values["main"], values["paper"]) == (main, paper)


def test_image_models_beside_clip_add_a_classifier_and_their_features(configured):
    found = configured(dataset="dtd", image_encoders="local-dir:/models/encoder,vit_small")
    assert "image_prototypes_encoders" in found.methods_of("dtd")
    [local, hub] = stage_params.image_features(found, "dtd")
    assert (local, hub) == tuple(
        f"results/dtd/image_encoders/{encoder}.parquet" for encoder in found.image_encoders
    )
    assert list(found.hub_encoders().values()) == [{"model": "vit_small"}]
    settings = stage_params.assemble_model(found, "dtd", "image_prototypes_encoders")
    assert settings["encoders"] == ["local-dir:/models/encoder", "vit_small"]
    for method in ("image_prototypes", "zero_shot"):
        assert "encoders" not in stage_params.assemble_model(found, "dtd", method)
        assert stage_params.image_features(found, "dtd", method) == []
