import json

import pytest

from latteclip.core.errors import UserError
from latteclip.evaluate.results import read_metrics

WHOLE = {
    **{"dataset": "d", "method": "m", "seed": 1, "images": 3},
    **{"acc1": 0.5, "acc5": 1, "mean_per_class_recall": None, "per_class": []},
}


@pytest.mark.parametrize("damage", [{"seed": None}, {"acc1": "high"}])
def test_broken_metrics_are_named(damage, tmp_path):
    path = tmp_path / "metrics.json"
    values = {key: value for key, value in {**WHOLE, **damage}.items() if key != "seed" or value}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"metrics\.json"):
        read_metrics(path)
