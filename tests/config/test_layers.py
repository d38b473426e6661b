import copy
import os

import pytest
import yaml

from latteclip.config import layers, shipped
from latteclip.core.errors import UserError

# Aliases that repeat each other: 10^8 values in a few lines.
BOMB = "a0: &a0 [1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with a folder `config`; writes one of its files."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        path = tmp_path / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))

    return write


def test_merge_lays_later_layers_over_earlier_ones_key_by_key():
    first = {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": 3}
    before = copy.deepcopy(first)
    merged = layers.merge(
        first, None, {"a": {"y": 5, "z": {"w": 6}}, "b": [9]}, {"a": {"z": {"v": 7}}}
    )
    assert merged == {"a": {"x": 1, "y": 5, "z": {"w": 6, "v": 7}}, "b": [9], "c": 3}
    assert first == before


def test_the_difference_is_what_merge_puts_back():
    base = {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": 3}
    config = {"a": {"x": 1, "y": 5, "z": 0}, "b": [1, 2], "c": {"d": 4}, "e": None}
    found = layers.difference(config, base)
    assert found == {"a": {"y": 5, "z": 0}, "c": {"d": 4}, "e": None}
    assert layers.merge(base, found) == layers.merge(base, config)
    assert layers.difference(base, base) == {}


def test_a_project_without_files_has_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = layers.defaults()
    assert found["dataset"] == "demo"
    assert set(layers.datasets()) == {file.stem for file in shipped.CONFIG.glob("datasets/*")}


def test_files_of_a_project_are_laid_over_the_shipped_ones(project):
    project("config.yaml", {"finetune": {"lr": 0.5}})
    project("datasets/mine.yaml", {"datasets": {"mine": {"template": "{}"}}})
    project("datasets/dtd.yaml", {"datasets": {"dtd": {"title": "Mine too"}}})
    found = layers.defaults()
    assert found["finetune"]["lr"] == 0.5
    assert found["finetune"]["beta1"] == 0.9
    assert found["datasets"]["mine"] == {"template": "{}"}
    assert found["datasets"]["dtd"]["title"] == "Mine too"
    assert "downloads" in found["datasets"]["dtd"]["source"]
    assert list(layers.datasets()) == sorted(found["datasets"])
    assert "mine" not in layers.defaults(project=None)["datasets"]


def test_the_folder_of_the_clone_is_read_once(monkeypatch):
    read = []
    monkeypatch.chdir(shipped.ROOT)
    monkeypatch.setattr(layers, "_read", lambda file: read.append(file) or {})
    layers.defaults()
    assert len(read) == len(set(read)) == 12


def test_folders_that_shipped_datasets_name_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(shipped.ROOT)
    demo = layers.datasets()["demo"]
    assert demo["clip"]["model"] == "local-dir:latteclip/demo/models/clip"
    assert demo["captioner"]["model"] == "latteclip/demo/models/llava"
    monkeypatch.chdir(tmp_path)
    demo = layers.datasets()["demo"]
    assert demo["clip"]["model"] == f"local-dir:{shipped.PACKAGE}/demo/models/clip"
    assert demo["captioner"]["model"] == f"{shipped.PACKAGE}/demo/models/llava"


def test_folders_that_a_project_names_are_its_own(project):
    values = {"clip": {"model": "local-dir:latteclip/demo/models/clip"}}
    project("datasets/mine.yaml", {"datasets": {"mine": values}})
    assert layers.datasets()["mine"] == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "config.yaml is not valid YAML: line 1, 'a: .1', expected ',' or ']'"),
        ("a: 1\nb: {c: 2\nd: 3\n", r"not valid YAML: line 3, 'd: 3', expected ',' or '}'"),
        ("datasets:\n  a: {}\n  b: {}\n  a: {}", "line 4, 'a: {}', the key a is there twice"),
        ("a: &b {c: 1}\nd: &e {<<: *b, c: 2}\nf: [{<<: *e, g: 1, g: 2}]", "key g is there twice"),
        ("[1]", "must hold keys with values, not"),
        ("finetune:\n  2: 3", "the key 2 of finetune is a number, not text; put it in quotes"),
        ("datasets:\n  2024-01-02: {}", "the key 2024-01-02 of datasets is a date, not text"),
        ("on: 3", "the key True is true or false, not text"),
        ("~: 3", "the key null is null, not text"),
        ('"a\\n": 3', "the key 'a.n' is empty, too long, or holds a character"),
        ('"a\\u2028b": {c: .nan}', "the key 'a.*b' is empty, too long, or holds a character"),
        ("? " + "x" * 2000 + "\n: 3", "the key 'xxx.* is empty, too long, or"),
        ("a: {b: .nan}", r"a\.b is nan, which is not a number to calculate with"),
        ("a: [-.inf]", r"a\.0 is -inf, which is not a number"),
        ("a: 99999999999999999999", "a is too large a whole number"),
        ("a: 2024-01-02", "a is a date, 2024-01-02; put it in quotes"),
        ("a: 2024-13-45", "not valid YAML: month must be in"),
        ("a: !!set {b}", "a is not a single value"),
        ('a: "\\0"', "a holds the character '.x00', which is a control character"),
        ("a: !!python/name:os.system x", "not valid YAML: line 1, .*could not determine"),
        ("a: &b [*b]", "holds more than 32 keys inside each other"),
        (BOMB, "holds more than 1048576 values"),
        ("[" * 5000, "nested too deeply"),
        ("datasets: 3", "datasets must hold keys of datasets"),
        ("datasets: {mine: [1]}", "datasets must hold keys of datasets"),
    ],
    ids=lambda text: text[:30],
)
def test_a_broken_file_is_one_sentence(project, text, message):
    project("config.yaml", {})
    (layers.PROJECT / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        layers.defaults()
    assert "\n" not in str(caught.value)


def test_a_key_that_stands_over_a_merged_one_is_not_there_twice(project):
    project("config.yaml", {})
    text = "a: {b: &b {<<: &c {x: 1}, x: 2}}\nd: {<<: [*b, *c], x: 3}\ne: [*b, *b]"
    (layers.PROJECT / "config.yaml").write_text(text)
    found = layers.defaults()
    assert found["a"] == {"b": {"x": 2}} and found["d"] == {"x": 3}


def test_a_file_that_is_not_utf_8_is_one_sentence(project):
    project("config.yaml", {})
    (layers.PROJECT / "config.yaml").write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 8; save it as UTF-8"):
        layers.defaults()


@pytest.mark.parametrize("name", ["config.yaml", "datasets/mine.yaml"])
def test_what_stands_in_a_file_s_place_is_named(project, name):
    path = layers.PROJECT / name
    path.parent.mkdir(parents=True)
    path.mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder; put a file there"):
        layers.defaults()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{name} is a named pipe; put a file there"):
        layers.defaults()


def test_what_a_command_line_gives_wins_over_its_files(tmp_path):
    for name, values in (
        ("a.yaml", {"seeds": 1, "clip": {"model": "a"}}),
        ("b.yaml", {"seeds": 2}),
    ):
        (tmp_path / name).write_text(yaml.safe_dump(values))
    files = [str(tmp_path / name) for name in ("a.yaml", "b.yaml")]
    found = layers.given(["clip={'precision': fp16}", "method=flyp,latteclip"], files)
    assert found == {
        "seeds": 2,
        "clip": {"model": "a", "precision": "fp16"},
        "method": "flyp,latteclip",
    }
    assert layers.given(["seeds=3"], files)["seeds"] == 3
    assert layers.given([], []) == {}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("seeds", "--config seeds is not KEY=VALUE; correct it"),
        ("=3", "--config =3 is not KEY=VALUE"),
        ("seeds=[1", "--config seeds=.1 is not valid YAML: line 1"),
        ("finetune=&a {b: *a}", "holds more than 32 keys inside each other"),
    ],
)
def test_what_is_no_pair_is_refused(pair, message):
    with pytest.raises(UserError, match=message):
        layers.given([pair], [])


def test_a_configuration_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        layers.given([], ["nowhere.yaml"])
