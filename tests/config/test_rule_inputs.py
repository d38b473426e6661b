import pytest

from latteclip.config import rule_inputs, rule_settings


def test_a_limited_run_shares_downloads_and_answers_and_nothing_else(configured):
    found = configured(dataset="dtd", limit=64)
    assert found.datasets == ["dtd_64"]
    assert rule_inputs.data_folder(found, "dtd_64") == "resources/dtd/data"
    assert rule_inputs.answer_store(found, "dtd_64", "images") == "resources/dtd/captions/images"
    assert all(path.startswith("results/dtd_64/") for path in rule_inputs.all_metrics(found))
    assert rule_settings.index_images(found, "dtd_64")["limit"] == 64
    assert "limit" not in rule_settings.index_images(configured(), "dtd")


IMAGES, GROUPS = (f"results/dtd/captions/{kind}s.parquet" for kind in ("image", "group"))


@pytest.mark.parametrize(
    ("method", "images", "groups", "labels"),
    [
        ("flyp", [], [], []),
        ("latteclip", [IMAGES], [GROUPS], []),
        ("latteclip_no_image_description", [], [GROUPS], []),
        ("latteclip_no_captions", [], [], []),
        ("flyp_fused", [], [], ["results/dtd/caption_labels.parquet"]),
    ],
)
def test_a_method_reads_what_it_trains_on(configured, method, images, groups, labels):
    found = configured(method=method)
    assert rule_inputs.captions_of_method(found, "dtd", method, "image") == images
    assert rule_inputs.captions_of_method(found, "dtd", method, "group") == groups
    assert rule_inputs.caption_labels_of_method(found, "dtd", method) == labels


VOTES = ["results/demo/votes.parquet"]
SELECTION = ["results/demo/selection.json"]


@pytest.mark.parametrize(
    ("method", "votes", "of_classifier"),
    [
        ("zero_shot,flyp", [], []),
        ("zero_shot,latteclip_no_image_description", [], []),
        ("zero_shot,latteclip", VOTES, []),
        ("zero_shot,flyp_fused", VOTES, []),
        ("zero_shot,image_prototypes", VOTES, VOTES),
    ],
)
def test_captions_that_the_run_has_vote(configured, method, votes, of_classifier):
    found = configured(method=method)
    assert rule_inputs.votes_if_any(found, "demo") == votes
    if "image_prototypes" in method:
        assert rule_inputs.votes_of_classifier(found, "demo", "image_prototypes") == of_classifier
    scored = configured(method=method, scores={"kind": "letters"})
    assert rule_inputs.votes_if_any(scored, "demo") == VOTES


def test_candidates_are_the_runs_that_have_a_classifier_and_read_no_label(configured):
    method = "flyp_supervised,label_propagation,latteclip,zero_shot_calibrated"
    found = configured(method=method, seeds=2)
    runs = [(one["method"], one["seed"]) for one in rule_inputs.candidates(found, "demo")]
    assert runs == [("latteclip", 0), ("latteclip", 1), ("zero_shot_calibrated", 0)]
    assert rule_inputs.files_of_candidates(found, "demo", "judged")[1:] == [
        "results/demo/latteclip/seed1/judged.parquet",
        "results/demo/zero_shot_calibrated/seed0/judged.parquet",
    ]


def test_a_model_is_chosen_where_there_are_several_and_images_to_judge(configured):
    assert rule_inputs.all_selections(configured()) == SELECTION
    assert rule_inputs.all_selections(configured(method="zero_shot,flyp_supervised")) == []
    assert rule_inputs.all_selections(configured(selection={"share": 0})) == []
    own = {"demo": {"selection": {"share": 0}}}
    found = configured(dataset="demo,dtd", datasets=own)
    assert rule_inputs.all_selections(found) == ["results/dtd/selection.json"]
    found = configured(table={"name": "study"})
    assert rule_inputs.selection_if_any(found, "demo") == ["results/demo/selection-study.json"]
