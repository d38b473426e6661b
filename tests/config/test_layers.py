import pytest
import yaml

from latteclip.config import layers
from latteclip.core.errors import UserError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with a folder `config`; writes one of its files."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        path = tmp_path / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))

    return write


def test_files_of_a_project_are_laid_over_the_shipped_ones(project):
    project("config.yaml", {"finetune": {"lr": 0.5}})
    project("datasets/mine.yaml", {"datasets": {"mine": {"template": "{}"}}})
    project("datasets/dtd.yaml", {"datasets": {"dtd": {"title": "Mine too"}}})
    found = layers.defaults()
    assert (found["finetune"]["lr"], found["dataset"]) == (0.5, "demo")
    assert found["datasets"]["mine"] == {"template": "{}"}
    assert found["datasets"]["dtd"]["title"] == "Mine too"
    assert "downloads" in found["datasets"]["dtd"]["source"]
    assert "mine" not in layers.defaults(project=None)["datasets"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"config\.yaml .*line 1"),
        ("a: 1\nb: {c: 2\nd: 3\n", "line 3"),
        ("[1]", r"config\.yaml"),
        ("a: {b: 1, c: 2, b: 3}", "key b is there twice"),
    ],
    ids=str,
)
def test_a_broken_file_is_one_sentence(project, text, message):
    project("config.yaml", text)
    with pytest.raises(UserError, match=message) as caught:
        layers.defaults()
    assert "\n" not in str(caught.value)
