import math
import re

import open_clip
import pytest
import timm
import yaml
from support.tiny import ROOT

from latteclip.config import layers
from latteclip.config.configuration import SHARDS, Configuration
from latteclip.config.layers import merge
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.evaluate import summary
from latteclip.train.settings import steps_per_epoch


@pytest.fixture
def config():
    """The repository's own configuration."""
    return layers.defaults(project=None)


def configured(config, **given):
    return Configuration(config, given)


def test_the_repository_s_configuration_is_valid_and_runs_the_demo(config):
    found = configured(config)
    assert found.datasets == ["demo"]
    ours = ["zero_shot_adapted", "image_prototypes"]
    assert found.methods == ["zero_shot", *ours, "latteclip", "recommended"]
    assert found.seeds == [0, 1, 2]


def test_photographs_in_a_folder_run_without_group_captions(config, tmp_path):
    found = configured(config, dataset="mine", image_dir=str(tmp_path))
    assert found.methods_of("mine") == [
        m for m in configured(config).methods if m != "latteclip"
    ]
    assert found.caption_kinds("mine") == ["image"]
    asked = configured(config, dataset="mine", image_dir=str(tmp_path), method="latteclip")
    assert asked.methods_of("mine") == ["latteclip"]


def test_a_folder_replaces_the_source_of_a_dataset_only_if_it_has_the_dataset_s_split(
    config, tmp_path
):
    given = {"dataset": "dtd", "image_dir": str(tmp_path)}
    with pytest.raises(UserError, match=r"image_dir.*dtd.*split_zhou"):
        configured(config, **given)
    (tmp_path / config["datasets"]["dtd"]["split"]["file"]).touch()
    assert configured(config, **given).dataset("dtd")["source"] == {"folder": str(tmp_path)}


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
    assert (
        found.method("latteclip", "demo")["finetune"]["lr"]
        == [0.1, 0.2, 0.3, 0.4, 0.5][top]
    )


def test_a_method_that_is_like_another_has_what_the_other_has_for_the_dataset(config):
    config["datasets"]["demo"]["methods"] = {
        "latteclip": {"switches": {"alpha": 0.75}, "finetune": {"weight_decay": 0.3}}
    }
    child = {"like": "latteclip", "switches": {"image_description": False}}
    grandchild = {"like": "child", "switches": {"alpha": 0.25}}
    alike = merge(config, {"methods": {"child": child, "grandchild": grandchild}})
    found = configured(alike, dataset="demo,dtd").method("child", "demo")
    assert found["switches"] == {"alpha": 0.75, "image_description": False}
    assert (found["objective"], found["finetune"]["weight_decay"]) == ("latteclip", 0.3)
    assert "like" not in found
    # What the user gives a method reaches those that are like it.
    given = {
        "methods": {
            "latteclip": {"switches": {"alpha": "0.5"}, "finetune": {"lr": "0.125"}}
        }
    }
    found = configured(alike, finetune={"lr": "0.75"}, **given)
    assert found.method("child", "demo")["switches"]["alpha"] == 0.5
    assert found.method("child", "demo")["finetune"]["lr"] == 0.125
    assert found.method("grandchild", "demo")["switches"]["alpha"] == 0.25
    assert found.method("flyp", "demo")["finetune"]["lr"] == 0.75


def test_every_ablation_differs_from_latteclip_in_its_switches_alone(config):
    """On the demo, too, whose file changes a switch of latteclip."""
    ablations = yaml.safe_load((ROOT / "config" / "ablations.yaml").read_text())
    found = configured(config, dataset="demo,dtd", **ablations)
    assert found.methods[:2] == ["zero_shot", found.table["baseline"]]
    for dataset in found.datasets:
        whole = found.method("latteclip", dataset)
        for name in found.methods[2:]:
            one = found.method(name, dataset)
            own = config["methods"][name]["switches"]
            assert own
            assert one["switches"] == merge(whole.get("switches", {}), own)
            assert {**one, "switches": None} == {**whole, "switches": None}


def test_the_ten_datasets_have_the_authors_number_of_steps(config):
    """open_clip's loader: each of 3 workers gives a third of the batches, rounded up."""
    found = configured(config, dataset="all")
    for name in found.datasets:
        n = found.dataset(name)["split"]["counts"]["train"]
        size = found.method("latteclip", name)["finetune"]["batch_size"]
        assert steps_per_epoch(n, size) == 3 * math.ceil(math.ceil(n / size) / 3)


def test_the_study_runs_what_the_paper_compares(config):
    study = yaml.safe_load((ROOT / "config" / "study.yaml").read_text())
    found = configured(config, **study)
    assert set(found.datasets) == set(summary.PAPER_DATASETS)
    assert found.seeds == [0, 1, 2]
    assert found.section("selection", "dtd")["share"] == 0  # trainings on all images
    ablations = yaml.safe_load((ROOT / "config" / "ablations.yaml").read_text())
    assert set(found.methods) == {*ablations["method"], "flyp"}


def test_strings_of_the_command_line_become_what_the_schema_wants(config):
    captioner = {"revision": "null", "model": "123"}
    found = configured(
        config, finetune={"lr": "2.5e-1", "epochs": "7"}, captioner=captioner
    )
    values = found.method("latteclip", "dtd")["finetune"]
    assert (values["lr"], values["epochs"]) == (0.25, 7)
    assert (
        found.section("captioner", "demo").items()
        >= {"model": "123", "revision": None}.items()
    )


def test_modern_models_and_words_are_those_that_the_libraries_know(config, tmp_path):
    text = (ROOT / "config" / "modern.yaml").read_text()
    modern = yaml.safe_load(text)
    assert not {"dataset", "image_dir"} & set(
        modern
    )  # which would replace a dataset's source
    found = configured(config, **modern, dataset="mine", image_dir=str(tmp_path))
    clip = found.section("clip", found.datasets[0])
    assert (clip["model"], clip["pretrained"]) in open_clip.list_pretrained()
    assert set(found.image_encoders.values()) <= set(timm.list_pretrained())
    remote_sensing = yaml.safe_load(re.search(r"clip: (\{.*\})", text)[1])
    assert tuple(remote_sensing.values()) in open_clip.list_pretrained()
    assert len(found.section("template", found.datasets[0])) > 3


def test_one_key_of_a_folder_may_be_set_and_the_others_stay(config, tmp_path):
    folder = {"dataset": "mine", "image_dir": str(tmp_path)}
    plain = configured(config, **folder).section("prompts", "mine")
    one = {"prompts": {"image": "Which?"}}
    for given in ({"datasets": {"mine": one}}, one):
        found = configured(config, **folder, **given).section("prompts", "mine")
        assert found == {**plain, "image": "Which?"}


def test_pictures_are_squares_for_captioners_that_see_them_so(config):
    for model, side in (
        ("me/llama3-llava-next-8b", 336),
        ("Qwen/Qwen3-VL-8B-Instruct", None),
    ):
        found = configured(config, captioner={"model": model}).section("captioner", "dtd")
        assert found["square_side"] == side


@pytest.mark.parametrize(
    ("gpus", "captioner", "expected"),
    [
        (4, {"tensor_parallel_size": 2}, 2),
        (1, {"tensor_parallel_size": 2}, 1),
        (4, {"engine": "openai"}, 1),
        (4, {"engine": "file"}, 1),
    ],
)
def test_shards_are_as_many_as_gpus_are_free_at_first_and_stay_so(
    tmp_path, monkeypatch, gpus, captioner, expected
):
    monkeypatch.chdir(tmp_path)
    config = layers.defaults(project=None)
    first = Configuration(config, {"captioner": captioner}, gpus=gpus).shards("dtd")
    assert first == expected
    write_json(SHARDS.format(dataset="dtd"), {"shards": first})
    for later in (1, 8):
        found = Configuration(config, {"captioner": captioner}, gpus=later)
        assert found.shards("dtd") == expected
    given = {"captions": {"shards": 3}, "captioner": captioner}
    wanted = 1 if captioner.get("engine") == "file" else 3
    assert Configuration(config, given, gpus=8).shards("dtd") == wanted
