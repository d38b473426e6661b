import json

import pytest

from latteclip.cli import main
from latteclip.evaluate.results import read_metrics

WHOLE = {
    **{"dataset": "d", "method": "m", "seed": 0, "images": 3},
    **{"acc1": 0.5, "acc5": 1, "mean_per_class_recall": None, "per_class": []},
}
BROKEN = {
    "half a file": (json.dumps(WHOLE)[:40], "is not valid JSON"),
    "no object": ("[1]", "is not a JSON object"),
    "a key too few": (json.dumps({k: v for k, v in WHOLE.items() if k != "seed"}), "lacks seed"),
    "a figure that is none": (
        json.dumps({**WHOLE, "acc1": "high"}),
        "acc1 is 'high', not a number",
    ),
    "other bytes": (b"\xff\xfe", "is not valid JSON"),
    "no file": (None, "does not exist"),
}


def test_metrics_are_read_with_and_without_marks(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(WHOLE))
    assert read_metrics(path) == {"marks": [], **WHOLE}
    path.write_text(json.dumps({**WHOLE, "marks": ["ours"]}))
    assert read_metrics(str(path))["marks"] == ["ours"]


@pytest.mark.parametrize("stage", ["summarize", "index-results"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_metrics_are_one_sentence_in_the_table_and_the_page(stage, name, tmp_path, capsys):
    content, message = BROKEN[name]
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    outputs = {
        "summarize": ["--baseline", "m", "--csv", tmp_path / "s.csv", "--markdown", tmp_path / "s"],
        "index-results": ["--settings", '{"baseline": "m"}', "--output", tmp_path / "index.html"],
    }
    assert main.main([stage, str(path), *map(str, outputs[stage])]) == 2
    error = capsys.readouterr().err
    assert f"error: {path}" in error
    assert message in error
    assert "Traceback" not in error
    assert set(tmp_path.iterdir()) <= {path}
