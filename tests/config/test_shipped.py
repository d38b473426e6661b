import os

from latteclip.config import shipped


def test_the_files_of_the_workflow_are_where_they_are_said_to_be():
    assert shipped.SNAKEFILE.is_file()
    assert shipped.SCHEMA.is_file()
    assert (shipped.CONFIG / "config.yaml").is_file()
    assert not shipped.INSTALLED.exists()  # of a clone


def test_paths_are_relative_inside_the_working_folder_alone(tmp_path, monkeypatch):
    here, beside = tmp_path / "here", tmp_path / "here_too"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    for folder in (here, tmp_path / "link"):
        monkeypatch.chdir(folder)
        assert shipped.seen_from_here(here / "a" / "b") == os.path.join("a", "b")
        assert shipped.seen_from_here("a") == "a"
        assert shipped.seen_from_here(beside / "a") == str(beside / "a")
