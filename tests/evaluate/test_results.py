import json

import pytest

from latteclip.core.errors import UserError
from latteclip.evaluate.results import read_metrics

WHOLE = {
    **{"dataset": "d", "method": "m", "seed": 0, "images": 3},
    **{"acc1": 0.5, "acc5": 1, "mean_per_class_recall": None, "per_class": []},
}
BROKEN = {
    "half a file": json.dumps(WHOLE)[:40].encode(),
    "no object": b"[1]",
    "a key too few": json.dumps({k: v for k, v in WHOLE.items() if k != "seed"}).encode(),
    "a figure that is none": json.dumps({**WHOLE, "acc1": "high"}).encode(),
    "no file": None,
}


def test_metrics_are_read_with_and_without_marks(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(WHOLE))
    assert read_metrics(path) == {"marks": [], **WHOLE}
    path.write_text(json.dumps({**WHOLE, "marks": ["ours"]}))
    assert read_metrics(str(path))["marks"] == ["ours"]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metrics_are_named(name, tmp_path):
    path = tmp_path / "metrics.json"
    if BROKEN[name] is not None:
        path.write_bytes(BROKEN[name])
    with pytest.raises(UserError, match=r"metrics\.json"):
        read_metrics(path)
