import re

import open_clip
import pytest
import timm
import yaml
from support.tiny import ROOT

from latteclip.config import layers
from latteclip.config.layers import merge
from latteclip.config.resolve import Run
from latteclip.core.errors import UserError


@pytest.fixture
def config():
    """The repository's own configuration."""
    return layers.defaults(project=None)


def configured(config, **given):
    return Run(config, given)


def test_photographs_in_a_folder_run_without_training_and_group_captions(config, tmp_path):
    [found] = configured(config, dataset="mine", image_dir=str(tmp_path)).datasets
    [demo] = configured(config).datasets
    assert found.method_names == demo.method_names[:3]
    assert not any(method.trained for method in found.methods)
    assert found.caption_kinds == {"image"}


def test_a_folder_replaces_the_source_of_a_dataset_only_if_it_has_the_dataset_s_split(
    config, tmp_path
):
    given = {"dataset": "dtd", "image_dir": str(tmp_path)}
    with pytest.raises(UserError, match=r"image_dir.*dtd.*split_zhou"):
        configured(config, **given)
    (tmp_path / config["datasets"]["dtd"]["split"]["file"]).touch()
    assert configured(config, **given).dataset("dtd").keys.source.folder == str(tmp_path)


LAYERS = ["defaults", "dataset", "method", "the dataset's method", "command line"]


@pytest.mark.parametrize("top", range(len(LAYERS)), ids=LAYERS)
def test_the_later_layer_wins(config, top):
    config["datasets"]["demo"]["finetune"].pop("lr")
    config["datasets"]["demo"]["methods"] = {}
    layers = [
        {"finetune": {"lr": 0.1}},
        {"datasets": {"demo": {"finetune": {"lr": 0.2}}}},
        {"methods": {"latteclip": {"finetune": {"lr": 0.3}}}},
        {"datasets": {"demo": {"methods": {"latteclip": {"finetune": {"lr": 0.4}}}}}},
    ]
    given = {"finetune": {"lr": 0.5}} if LAYERS[top] == "command line" else {}
    found = configured(merge(config, *layers[: top + 1]), **given)
    rate = found.dataset("demo").method("latteclip").keys.finetune.lr
    assert rate == [0.1, 0.2, 0.3, 0.4, 0.5][top]


def test_a_method_that_is_like_another_has_what_the_other_has_for_the_dataset(config):
    config["datasets"]["demo"]["methods"] = {
        "latteclip": {"switches": {"alpha": 0.75}, "finetune": {"batch_size": 30}}
    }
    child = {"like": "latteclip", "switches": {"image_description": False}}
    grandchild = {"like": "child", "switches": {"alpha": 0.25}}
    alike = merge(config, {"methods": {"child": child, "grandchild": grandchild}})
    found = configured(alike, dataset="demo,dtd").dataset("demo").method("child").keys
    assert (found.switches.alpha, found.switches.image_description) == (0.75, False)
    assert (found.objective, found.finetune.batch_size) == ("latteclip", 30)
    # What the user gives a method reaches those that are like it.
    given = {"methods": {"latteclip": {"switches": {"alpha": 0.5}}}}
    demo = configured(alike, finetune={"lr": 0.75}, **given).dataset("demo")
    assert demo.method("child").keys.switches.alpha == 0.5
    assert demo.method("grandchild").keys.switches.alpha == 0.25
    assert demo.method("flyp").keys.finetune.lr == 0.75


def test_every_ablation_differs_from_latteclip_in_its_switches_alone(config):
    """On the demo, too, whose file changes a switch of latteclip."""
    ablations = yaml.safe_load((ROOT / "config" / "ablations.yaml").read_text())
    found = configured(config, dataset="demo,dtd", **ablations)
    for dataset in found.datasets:
        names = dataset.method_names
        assert names[:2] == ["zero_shot", found.keys.table.baseline]
        whole = dataset.method("latteclip").keys
        for name in names[2:]:
            one = dataset.method(name).keys
            if one.of == "latteclip":  # another classifier of its features
                continue
            own = config["methods"][name]["switches"]
            assert own
            assert one.switches == whole.switches.model_copy(update=own)
            rest = {"switches", "like"}
            assert one.model_dump(exclude=rest) == whole.model_dump(exclude=rest)


def test_strings_of_the_command_line_become_what_the_schema_wants(config):
    captioner = {"revision": "null", "model": "123"}
    given = {"finetune": {"lr": "2.5e-1", "epochs": "7"}, "captioner": captioner}
    keys = configured(config, **given).dataset("dtd").keys
    assert (keys.finetune.lr, keys.finetune.epochs) == (0.25, 7)
    assert (keys.captioner.model, keys.captioner.revision) == ("123", None)


def test_a_tilde_is_the_home_folder_in_all_paths(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = {"split": {"lists": {"train": "~/a.txt"}}, "clip": {"model": "local-dir:~/b"}}
    [found] = configured(config, dataset="mine", image_dir="~/c", **given).datasets
    paths = found.keys.split.lists["train"], found.models[0].path, found.keys.source.folder
    assert paths == ("/home/me/a.txt", "/home/me/b", "/home/me/c")


def test_modern_models_and_words_are_those_that_the_libraries_know(config, tmp_path):
    text = (ROOT / "config" / "modern.yaml").read_text()
    modern = yaml.safe_load(text)
    found = configured(config, **modern, dataset="mine", image_dir=str(tmp_path))
    keys = found.datasets[0].keys
    assert (keys.clip.model, keys.clip.pretrained) in open_clip.list_pretrained()
    assert set(found.image_encoders.values()) <= set(timm.list_pretrained())
    remote_sensing = yaml.safe_load(re.search(r"clip: (\{.*\})", text)[1])
    assert tuple(remote_sensing.values()) in open_clip.list_pretrained()


def test_what_is_named_twice_runs_once(config):
    run = configured(config, dataset="demo,demo", seeds="1,01", method="flyp,flyp")
    assert [each.name for each in run.datasets] == ["demo"]
    assert run.keys.seeds == [1]
    assert run.datasets[0].method_names == ["flyp"]


@pytest.mark.parametrize("has_gpus", [False, True])
def test_images_of_ones_own_are_trained_on_where_there_is_a_gpu(has_gpus):
    given = {"dataset": "mine", "image_dir": "photos"}
    [found] = Run(layers.defaults(), given, has_gpus=has_gpus).datasets
    assert ("recommended" in found.method_names) == has_gpus
    assert "image_prototypes" in found.method_names
