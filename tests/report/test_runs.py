import pandas as pd
import pytest
from support.made_results import Results

from latteclip.core.errors import UserError
from latteclip.report import runs


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[", "runs"), ('[{"methd": "a"}]', "methd")],
)
def test_runs_that_are_none_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        runs.run_files(text)


def test_predictions_of_other_images_are_refused(results, tmp_path):
    other = Results(tmp_path, n_test=11)
    _, test, _ = runs.read_splits(results.images, results.pseudo_labels)
    with pytest.raises(UserError, match=r"predictions\.parquet"):
        runs.read_labels(other.runs[0].predictions, test)
    with pytest.raises(UserError, match=r"pseudo_labels\.parquet"):
        runs.read_splits(results.images, other.pseudo_labels)


def test_a_history_is_drawn_as_means_of_neighbouring_steps(results):
    path = next(run.history for run in results.runs if run.method == "flyp")
    whole = pd.read_parquet(path)
    curves = runs.read_curves(path, 50)
    assert set(curves) == {"epoch", "loss", "agreement", "class_balance"}
    for point in (0, 17, 49):
        steps = whole["loss"].iloc[6 * point : 6 * point + 6]
        assert curves["loss"][point] == pytest.approx(steps.mean(), rel=1e-5)
    assert curves["epoch"][0] == pytest.approx(0.03)
    assert curves["epoch"][-1] == pytest.approx(2.97)
