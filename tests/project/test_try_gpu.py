import importlib.util
import json
import sys

import pytest
from support.tiny import ROOT, write_pseudo_labels


@pytest.fixture(scope="module")
def try_gpu():
    spec = importlib.util.spec_from_file_location("try_gpu", ROOT / "tools" / "try_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def demos(try_gpu, tmp_path):
    """Three runs: the first two agree, the third has another label of five."""
    found = []
    for name, label in (("one", 0), ("two", 0), ("three", 1)):
        demo = try_gpu.Demo(tmp_path / name, 4)
        files, labels = [f"{n}.png" for n in range(5)], [label, 1, 0, 1, 0]
        write_pseudo_labels(demo.results / "pseudo_labels.parquet", files, labels)
        found.append(demo)
    return found


def run(try_gpu, monkeypatch, path, checks, *more):
    monkeypatch.setattr(try_gpu, "checks", lambda *_: checks)
    monkeypatch.setattr(sys, "argv", ["try_gpu.py", "--json", str(path), *more])
    with pytest.raises(SystemExit) as ended:
        try_gpu.main()
    return ended.value.code, json.loads(path.read_text())


def test_each_check_is_a_line_and_a_warning_is_the_exit_status(
    try_gpu, demos, monkeypatch, tmp_path, capsys
):
    one, two, three = demos
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checks = {
        "same features": lambda: one.features(two),
        "other labels": lambda: one.features(three),
        "no captions": lambda: one.captions(two),  # their tables are not there
        "on the GPU": lambda: one.features(two),
        "card": try_gpu.card,
    }
    status, found = run(try_gpu, monkeypatch, tmp_path / "found.json", checks)
    levels = ["ok", "warning", "warning", "not tried", "not tried"]
    assert [each["level"] for each in found] == levels
    assert [each["check"] for each in found] == [*checks]
    assert "80.0% of labels" in found[1]["text"]
    assert "captions/images.parquet" in found[2]["text"]
    assert "no NVIDIA GPU" in found[3]["text"]
    assert status == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9].strip() for line in lines] == levels

    good = {name: checks[name] for name in ("same features", "on the GPU", "card")}
    status, found = run(try_gpu, monkeypatch, tmp_path / "found.json", good, "--rehearse")
    assert status == 0
    assert [each["level"] for each in found] == ["ok", "ok", "not tried"]
