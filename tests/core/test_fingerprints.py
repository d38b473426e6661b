import pytest

from latteclip.core import files


@pytest.mark.parametrize("whole", [10**6, 1000])
def test_a_model_goes_by_its_content_wherever_it_is(tmp_path, monkeypatch, whole):
    """Large files count by samples of it."""
    monkeypatch.setattr(files, "HASHED_WHOLE", whole)
    monkeypatch.setattr(files, "SAMPLE", 10)
    contents = (bytes(5000), bytes(5000), bytes(5001), bytes(4999) + b"x")
    of_folders, of_files = [], []
    for number, content in enumerate(contents):
        folder = tmp_path / str(number)
        (folder / "text_tower").mkdir(parents=True)
        (folder / "text_tower" / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(content)
        (folder / ".lock").write_text(str(number))
        of_folders.append(files.fingerprint(folder))
        of_files.append(files.fingerprint(folder / "model.safetensors"))
    for found in (of_folders, of_files):
        assert found[0] == found[1]
        assert len(set(found)) == 3
    (tmp_path / "0" / "text_tower" / "config.json").write_text("[]")
    assert files.fingerprint(tmp_path / "0") != of_folders[1]
