import datetime
import re

import open_clip
import pytest
import timm
import yaml
from support.tiny import ROOT

from latteclip.config import layers
from latteclip.config.configuration import Configuration, as_json, note_shards
from latteclip.config.layers import merge
from latteclip.core.errors import UserError
from latteclip.evaluate import summary


@pytest.fixture
def config():
    """The repository's own configuration."""
    return layers.defaults(project=None)


def configured(config, **given):
    return Configuration(config, given)


def refused(config, message, **given):
    with pytest.raises(UserError, match=message) as caught:
        configured(config, **given)
    assert "\n" not in str(caught.value)


def test_the_repository_s_configuration_is_valid_and_runs_the_demo(config):
    found = configured(config)
    assert found.datasets == ["demo"]
    ours = ["zero_shot_calibrated", "image_prototypes"]
    assert found.methods == ["zero_shot", *ours, "latteclip", "recommended"]
    assert found.seeds == [0, 1, 2]


def test_photographs_in_a_folder_run_without_group_captions(config, tmp_path):
    found = configured(config, dataset="mine", image_dir=str(tmp_path))
    assert found.methods_of("mine") == [m for m in configured(config).methods if m != "latteclip"]
    assert found.caption_kinds("mine") == ["image"]
    asked = configured(config, dataset="mine", image_dir=str(tmp_path), method="latteclip")
    assert asked.methods_of("mine") == ["latteclip"]
    source = {"source": {"folder": str(tmp_path)}}
    mine = {**config["datasets"]["demo"], **source}
    both = configured(config, dataset="demo,mine", datasets={"mine": mine}, seeds=1)
    assert [method for method, _ in both.runs("mine")] == found.methods_of("mine")
    assert [method for method, _ in both.runs("demo")] == configured(config).methods


def test_a_method_without_training_runs_once(config):
    assert configured(config, method="zero_shot,image_prototypes,latteclip", seeds=2).runs(
        "demo"
    ) == [
        ("zero_shot", 0),
        ("image_prototypes", 0),
        ("latteclip", 0),
        ("latteclip", 1),
    ]


def test_all_datasets_are_those_that_are_downloaded(config):
    assert len(configured(config, dataset="all").datasets) == 10
    assert "demo" not in configured(config, dataset="all").datasets


LAYERS = ["defaults", "dataset", "method", "the dataset's method", "command line"]


@pytest.mark.parametrize("top", range(len(LAYERS)), ids=LAYERS)
def test_the_later_layer_wins(config, top):
    for section in (config["datasets"]["demo"]["finetune"], config["finetune"]):
        section.pop("lr", None)
    config["datasets"]["demo"]["methods"] = {}
    layers = [
        {"finetune": {"lr": 0.1}},
        {"datasets": {"demo": {"finetune": {"lr": 0.2}}}},
        {"methods": {"latteclip": {"finetune": {"lr": 0.3}}}},
        {"datasets": {"demo": {"methods": {"latteclip": {"finetune": {"lr": 0.4}}}}}},
    ]
    given = {"finetune": {"lr": 0.5}} if LAYERS[top] == "command line" else {}
    found = configured(merge(config, *layers[: top + 1]), **given)
    assert found.method("latteclip", "demo")["finetune"]["lr"] == [0.1, 0.2, 0.3, 0.4, 0.5][top]


@pytest.fixture
def alike(config):
    """Configuration in which `child` is like latteclip, and `grandchild` like that."""
    methods = {
        "child": {"like": "latteclip", "switches": {"image_description": False}},
        "grandchild": {"like": "child", "switches": {"alpha": 0.25}, "finetune": {"lr": 0.5}},
    }
    demo = {"latteclip": {"switches": {"alpha": 0.75}, "finetune": {"beta1": 0.3}}}
    config["datasets"]["demo"]["methods"] = demo
    return merge(config, {"methods": methods})


def test_a_method_that_is_like_another_has_what_the_other_has_for_the_dataset(alike):
    found = configured(alike, dataset="demo,dtd")
    other, child = found.method("latteclip", "demo"), found.method("child", "demo")
    assert child["switches"] == {"alpha": 0.75, "image_description": False}
    assert child["finetune"] == other["finetune"]
    assert child["finetune"]["beta1"] == 0.3
    assert child["objective"] == "latteclip"
    assert "like" not in child
    assert found.method("child", "dtd")["switches"] == {"image_description": False}


def test_what_the_user_gives_a_method_reaches_those_that_are_like_it(alike):
    given = {"methods": {"latteclip": {"switches": {"alpha": "0.5"}, "finetune": {"lr": "0.125"}}}}
    found = configured(alike, finetune={"lr": "0.75"}, **given)
    assert found.method("child", "demo")["switches"]["alpha"] == 0.5
    assert found.method("child", "demo")["finetune"]["lr"] == 0.125
    assert found.method("grandchild", "demo")["switches"]["alpha"] == 0.25
    assert found.method("flyp", "demo")["finetune"]["lr"] == 0.75


def test_methods_may_not_be_like_each_other_in_a_circle(config):
    circle = {"a": {"like": "b"}, "b": {"like": "c"}, "c": {"like": "b"}}
    refused(config, "a, b, c, b", methods=circle)


@pytest.mark.parametrize(
    ("method", "others", "message"),
    [
        ({"like": "flyp", "pseudo_labels": "lmm"}, {}, r"scores\.kind"),
        ({"like": "image_prototypes", "pseudo_labels": "caption"}, {}, "caption"),
        (
            {"like": "latteclip", "switches": {"zero_shot_loss": False, "finetuned_loss": False}},
            {},
            "zero_shot_loss",
        ),
        (
            {"like": "latteclip"},
            {"captioner": {"max_model_len": 256, "max_new_tokens": 256}},
            r"captioner\.max_new_tokens",
        ),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(config, method, others, message):
    """The last stage would find them, after days of captioning."""
    refused(config, f"own.*{message}|{message}", method="own", methods={"own": method}, **others)
    configured(config, methods={"own": method})  # a method that is not run


def test_every_ablation_differs_from_latteclip_in_its_switches_alone(config):
    """On the demo, too, whose file changes a switch of latteclip."""
    ablations = yaml.safe_load((ROOT / "config" / "ablations.yaml").read_text())
    found = configured(config, dataset="demo,dtd", **ablations)
    assert found.table == {"name": "ablations", "baseline": "latteclip"}
    assert found.methods[:2] == ["zero_shot", "latteclip"]
    assert set(found.methods) == {
        name for name in config["methods"] if name.startswith("latteclip") and "fused" not in name
    } | {"zero_shot"}
    seen = []
    for dataset in found.datasets:
        whole = found.method("latteclip", dataset)
        for name in found.methods[2:]:
            one = found.method(name, dataset)
            own = config["methods"][name]["switches"]
            assert one["switches"] == merge(whole.get("switches", {}), own)
            assert {**one, "switches": None} == {**whole, "switches": None}
            seen.append((dataset, as_json(one["switches"])))
    assert len(set(seen)) == len(seen)


def test_the_study_runs_what_the_paper_compares(config):
    study = yaml.safe_load((ROOT / "config" / "study.yaml").read_text())
    found = configured(config, **study)
    assert set(found.datasets) == set(summary.PAPER_DATASETS)
    assert found.seeds == [0, 1, 2]
    ablations = yaml.safe_load((ROOT / "config" / "ablations.yaml").read_text())
    assert set(found.methods) == {*ablations["method"], "flyp", "label_propagation"}


def test_captions_are_read_by_methods_that_use_them(config):
    config = merge(
        config,
        {
            "datasets": {
                "dtd": {"methods": {"latteclip": {"switches": {"group_description": False}}}}
            }
        },
    )
    found = configured(config)
    assert found.reads_captions("latteclip", "image", "demo")
    assert found.reads_captions("latteclip", "group", "demo")
    assert found.reads_captions("latteclip", "image", "dtd")
    assert not found.reads_captions("latteclip", "group", "dtd")
    assert not found.reads_captions("latteclip_no_captions", "image", "demo")
    assert not found.reads_captions("flyp", "image", "demo")


def test_strings_of_the_command_line_become_what_the_schema_wants(config):
    found = configured(
        config,
        finetune={"lr": "2.5e-1", "epochs": "7"},
        captioner={"revision": "null", "model": "123"},
        methods={"latteclip": {"switches": {"prototypes": "false", "alpha": "0.5"}}},
    )
    method = found.method("latteclip", "dtd")
    assert (method["finetune"]["lr"], method["finetune"]["epochs"]) == (0.25, 7)
    assert method["switches"]["prototypes"] is False
    assert found.section("captioner", "demo")["model"] == "123"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"captionr": {}}, "captionr .*captioner"),
        ({"finetune": {"epoch": 3}}, r"finetune\.epoch .*epochs"),
        ({"methods": {"latteclip": {"switches": {"mixer_weight": 0}}}}, "mixer_weights"),
        ({"dataset": "demoo"}, "demoo.*demo"),
        ({"method": "flyp,lateclip"}, "lateclip.*latteclip"),
        ({"finetune": {"lr": -1}}, r"finetune\.lr "),
        ({"finetune": {"lr": "1e999"}}, r"finetune\.lr "),
        ({"finetune": {"lr": float("nan")}}, r"finetune\.lr "),
        ({"finetune": {2: 3}}, r"finetune\.2 "),
        ({"clip": {"model": datetime.date(2024, 1, 2)}}, r"clip\.model "),
        ({"datasets": {"demo": {"source": {"folder": "."}}}}, r"datasets\.demo\.source "),
        ({"finetune": {"epochs": "many"}}, r"finetune\.epochs "),
        ({"finetune": None}, "finetune"),
        ({"seeds": "a,b"}, "seeds"),
        *(({"limit": value}, "limit") for value in (0, -1, "many", 1.5)),
        ({"limit": 8, "datasets": {"demo_8": {"source": {"folder": "."}}}}, "demo_8"),
        ({"captioner": {"engine": "vlm"}}, r"captioner\.engine .*vllm"),
        ({"dataset": "new", "datasets": {"new": {"template": "{}"}}}, "new .*image_dir"),
        ({"methods": {"new": {"switches": {}}}}, r"methods\.new\.objective "),
        ({"methods": {"new": {"like": "lateclip"}}}, "lateclip.*latteclip"),
        ({"table": {"baseline": "latte"}}, r"table\.baseline .*latteclip"),
        ({"clip": {"model": "ViT-B-32"}}, r"clip\.pretrained"),
        ({"datasets": {"demo": {"template": ["a {}.", "photo"]}}}, "demo .*template .*photo"),
        ({"datasets": {"demo": {"class_synonyms": {"grid": ["net", "net"]}}}}, "class_synonyms"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence_that_names_the_key(config, given, message):
    refused(config, message, **given)


def test_modern_models_and_words_are_those_that_the_libraries_know(config, tmp_path):
    text = (ROOT / "config" / "modern.yaml").read_text()
    modern = yaml.safe_load(text)
    found = configured(config, **{**modern, "image_dir": str(tmp_path)})
    clip = found.section("clip", found.datasets[0])
    assert (clip["model"], clip["pretrained"]) in open_clip.list_pretrained()
    assert set(found.eyes.values()) <= set(timm.list_pretrained())
    remote_sensing = yaml.safe_load(re.search(r"clip: (\{.*\})", text)[1])
    assert tuple(remote_sensing.values()) in open_clip.list_pretrained()
    assert len(found.section("template", found.datasets[0])) > 3
    mine = configured(config, **{**modern, "dataset": "mine", "image_dir": str(tmp_path)})
    assert mine.section("template", "mine") == found.section("template", found.datasets[0])
    refused(config, r"source\.folder photographs", **modern)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("split", "max_corrupt", 0.05),
        ("split", "kind", "csv"),
        ("prompts", "image", "Which bird is it?"),
        ("captioner", "square_side", 64),
    ],
)
def test_one_key_of_a_folder_may_be_set_and_the_others_stay(config, tmp_path, section, key, value):
    folder = {"dataset": "mine", "image_dir": str(tmp_path)}
    plain = configured(config, **folder).section(section, "mine")
    for given in ({"datasets": {"mine": {section: {key: value}}}}, {section: {key: value}}):
        assert configured(config, **folder, **given).section(section, "mine") == {
            **plain,
            key: value,
        }
    other = configured(config, **folder, datasets={"mine": {section: {key: value}}})
    assert other.section(section, "dtd") == configured(config).section(section, "dtd")


@pytest.mark.parametrize(
    ("model", "side"),
    [
        ("llava-hf/llava-v1.6-mistral-7b-hf", 336),
        ("/cache/models--llava-hf--llava-v1.6-34b-hf/snapshots/1", 336),
        ("llava-hf/llama3-llava-next-8b-hf", 336),
        ("llava-hf/llava-1.5-7b-hf", None),
        ("Qwen/Qwen3-VL-8B-Instruct", None),
    ],
)
def test_pictures_are_squares_for_captioners_that_see_them_so(config, model, side):
    found = configured(config, captioner={"model": model}).section("captioner", "dtd")
    assert found["square_side"] == side


def test_braces_in_a_source_folder_are_refused(config, tmp_path):
    """Snakemake takes them for wildcards, and would put a value in their place."""
    del config["datasets"]["demo"]["source"]["textures"]
    for name in ("photos {2024}", "of {dataset}", "{ x, [0-9]+}"):
        (tmp_path / name).mkdir()
        source = {"folder": str(tmp_path / name)}
        refused(config, "braces", datasets={"demo": {"source": source}})


def test_a_download_into_another_folder_is_refused(config):
    source = {"downloads": {"x.zip": {"sources": ["https://example.org/x.zip"]}}}
    del config["datasets"]["demo"]["source"]["textures"]
    for into in ("../../../out", "/out", ""):
        source["downloads"]["x.zip"]["into"] = into
        refused(config, r"x\.zip\.into ", datasets={"demo": {"source": source}})


@pytest.mark.parametrize(
    ("gpus", "captioner", "expected"),
    [
        (1, {}, 1),
        (4, {}, 4),
        (4, {"tensor_parallel_size": 2}, 2),
        (1, {"tensor_parallel_size": 2}, 1),
        (4, {"engine": "openai"}, 1),
    ],
)
def test_shards_are_as_many_as_gpus_are_free_at_first_and_stay_so(
    tmp_path, monkeypatch, gpus, captioner, expected
):
    monkeypatch.chdir(tmp_path)
    config = layers.defaults(project=None)
    first = Configuration(config, {"captioner": captioner}, gpus=gpus).shards("dtd")
    assert first == expected
    note_shards("dtd", first)
    for later in (1, 8):
        found = Configuration(config, {"captioner": captioner}, gpus=later)
        assert found.shards("dtd") == expected
        assert ("dtd" in found.sharded()) == (expected > 1)
    assert Configuration(config, {"captions": {"shards": 3}}, gpus=8).shards("dtd") == 3
