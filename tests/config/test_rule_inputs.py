import pytest

from latteclip.config import rule_inputs

CLIP = "resources/models/ViT-B-32@laion2b_s34b_b79k.json"


def test_the_folder_is_the_user_s_or_one_that_is_made(configured, tmp_path):
    assert rule_inputs.data_folder(configured(), "dtd") == "resources/dtd/data"
    mine = configured(dataset="mine", image_dir=str(tmp_path))
    assert rule_inputs.data_folder(mine, "mine") == str(tmp_path)


def test_a_model_of_the_hub_has_a_note_and_a_folder_none(configured):
    assert rule_inputs.hub_model(configured(), "dtd", "clip") == [CLIP]
    assert rule_inputs.hub_model(configured(), "demo", "clip") == []
    assert rule_inputs.hub_model(configured(), "demo", "captioner") == []


@pytest.mark.parametrize("engine", ["vllm", "transformers", "openai", "file"])
def test_captions_depend_on_the_engine_of_their_dataset(configured, engine):
    found = rule_inputs.engine_code(configured(captioner={"engine": engine}), "dtd")
    assert any(path.endswith(f"latteclip/captions/engines/{engine}.py") for path in found)


@pytest.mark.parametrize(
    ("method", "module"),
    [("flyp", "flyp"), ("flyp_supervised", "flyp"), ("latteclip_fused", "latteclip")],
)
def test_a_training_depends_on_the_objective_of_its_method(configured, method, module):
    found = rule_inputs.objective_code(configured(), method)
    assert any(path.endswith(f"latteclip/train/objectives/{module}.py") for path in found)
    mixed = any(path.endswith("objectives/mixer.py") for path in found)
    assert mixed == (module == "latteclip")


def test_pseudo_labels_are_read_where_the_prompt_names_them(configured):
    named = {"dtd": {"prompts": {"image": "Is it {}?"}}}
    found = configured(datasets=named)
    assert rule_inputs.pseudo_labels_if_named(found, "demo") == []
    assert rule_inputs.pseudo_labels_if_named(found, "dtd") == ["results/dtd/pseudo_labels.parquet"]


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.csv"
    path.touch()
    return str(path)


def test_captions_of_one_s_own_are_read_by_engine_file_alone(configured, mine):
    own = {"images_file": mine}
    with_file = configured(captioner={"engine": "file", **own})
    assert rule_inputs.own_captions(with_file, "dtd", "images") == [mine]
    assert rule_inputs.own_captions(with_file, "dtd", "groups") == []
    assert rule_inputs.own_captions(configured(captioner=own), "dtd", "images") == []


def test_labels_alone_need_no_training_and_no_method_that_asks_for_them(configured):
    found = rule_inputs.labels(configured(dataset="dtd,demo", method="zero_shot"))
    assert found == [
        f"results/{dataset}/{name}"
        for dataset in ("dtd", "demo")
        for name in (
            *("caption_labels.parquet", "unknown.parquet"),
            "image_prototypes/seed0/model",
        )
    ]


def test_shards_are_as_many_as_configured(configured):
    found = configured(captions={"shards": 2})
    assert rule_inputs.caption_shards(found, "dtd", "groups") == [
        "results/dtd/captions/shards/groups-1-of-2.parquet",
        "results/dtd/captions/shards/groups-2-of-2.parquet",
    ]


def test_scores_depend_on_the_scorer_of_their_dataset(configured):
    found = rule_inputs.scorer_code(configured(captioner={"engine": "openai"}), "dtd")
    assert any(path.endswith("latteclip/captions/scorers/openai.py") for path in found)
    assert any(path.endswith("latteclip/captions/engines/openai.py") for path in found)
    assert not any(path.endswith("vllm.py") for path in found)


def test_scores_are_read_where_the_configuration_asks_for_some(configured):
    assert rule_inputs.class_scores_if_in_use(configured(), "dtd") == []
    of_one = configured(datasets={"dtd": {"scores": {"kind": "letters"}}})
    assert rule_inputs.class_scores_if_in_use(of_one, "dtd") == ["results/dtd/class_scores.parquet"]
    assert rule_inputs.class_scores_if_in_use(of_one, "demo") == []


def test_scores_of_one_s_own_are_read_by_engine_file_alone(configured, mine):
    own = {"file": mine}
    with_file = configured(captioner={"engine": "file"}, scores=own)
    assert rule_inputs.own_scores(with_file, "dtd") == [mine]
    assert rule_inputs.own_scores(configured(scores=own), "dtd") == []
    assert rule_inputs.own_scores(configured(captioner={"engine": "file"}), "dtd") == []


def test_scores_have_as_many_shards_as_captions(configured):
    assert rule_inputs.score_shards(configured(captions={"shards": 2}), "dtd") == [
        "results/dtd/captions/shards/class_scores-1-of-2.parquet",
        "results/dtd/captions/shards/class_scores-2-of-2.parquet",
    ]


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


def test_the_page_reads_captions_that_some_method_needs(configured):
    found = configured(method="flyp,latteclip_no_image_description")
    assert rule_inputs.captions_in_use(found, "dtd") == [GROUPS]
    assert rule_inputs.captions_if_in_use(found, "dtd", "image") == []
    assert rule_inputs.captions_if_in_use(found, "dtd", "group") == [GROUPS]
    assert rule_inputs.caption_summary_if_in_use(found, "dtd") == [
        "results/dtd/captions/summary.json"
    ]
    assert rule_inputs.caption_summary_if_in_use(configured(method="flyp"), "dtd") == []


def test_metrics_are_those_of_every_run(configured):
    found = configured(dataset="dtd,demo", method="zero_shot,flyp", seeds=2)
    assert rule_inputs.all_metrics(found) == [
        f"results/{dataset}/{run}/metrics.json"
        for dataset in ("dtd", "demo")
        for run in ("zero_shot/seed0", "flyp/seed0", "flyp/seed1")
    ]


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


def test_a_classifier_that_no_votes_made_is_judged_as_it_is(configured):
    by_zero_shot = {"image_prototypes": {"pseudo_labels": "zero_shot_calibrated"}}
    found = configured(method="image_prototypes,zero_shot_calibrated", methods=by_zero_shot)
    for method in ("image_prototypes", "zero_shot_calibrated"):
        assert rule_inputs.votes_of_classifier(found, "demo", method) == []


def test_zero_shot_has_a_model_as_well(configured):
    path = rule_inputs.classifier_of_method(configured(), "demo", "zero_shot")
    assert path == "results/demo/class_embeddings.safetensors"


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


def test_the_page_shows_the_biases_of_a_run_that_takes_them_off(configured):
    assert rule_inputs.calibrated_if_run(configured(method="zero_shot"), "demo") == []
    found = configured(method="zero_shot_calibrated")
    wanted = ["results/demo/classifiers/calibrated.safetensors"]
    assert rule_inputs.calibrated_if_run(found, "demo") == wanted
