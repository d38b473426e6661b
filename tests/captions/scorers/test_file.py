import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latteclip.captions.scorers.file import OwnScores, read_own_scores
from latteclip.core.errors import UserError

CLASSNAMES = ["dot", "dotted", "red lines"]
ROWS = [("a/1.png", ["red lines", "dot"], [-0.5, -2.25]), ("007", [1, 0], [-math.inf, -1.0])]


def write(path):
    """The rows in the form that the name of the file asks for."""
    table = pd.DataFrame(ROWS, columns=["image_id", "options", "log_probabilities"])
    if path.suffix == ".parquet":
        table["options"] = [[2, 0], [1, 0]]  # a column has one type
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    else:
        table["options"] = table["options"].map(json.dumps)
        table["log_probabilities"] = ["[-0.5, -2.25]", "[-inf, -1]"]
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_all_forms_say_the_same(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    write(path)
    found = read_own_scores(str(path), CLASSNAMES)
    assert {name: (row.options, row.log_probabilities) for name, row in found.items()} == {
        "a/1.png": ([2, 0], [-0.5, -2.25]),
        "007": ([1, 0], [-math.inf, -1.0]),
    }


def test_names_in_parquet_are_class_names(tmp_path):
    row = {"image_id": ["a"], "options": [["dotted"]], "log_probabilities": [np.array([-1.0])]}
    pd.DataFrame(row).to_parquet(tmp_path / "a.parquet")
    assert read_own_scores(str(tmp_path / "a.parquet"), CLASSNAMES)["a"].options == [1]


def test_an_image_that_the_file_lacks_has_an_error(tmp_path):
    write(tmp_path / "mine.csv")
    own = OwnScores(str(tmp_path / "mine.csv"), CLASSNAMES)
    assert own("a/1.png").error is None
    assert own("other.png").error == "the file has no scores of it"


HEAD = "image_id\toptions\tlog_probabilities\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"does not end in any of \.parquet, \.csv, \.tsv, \.jsonl"),
        ("a.csv", "", "cannot be read"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.csv", "image_id,options\n1,[0]\n", r"lacks the columns \['log_probabilities'\]"),
        ("a.tsv", HEAD + "x\t[0, 1]\t[-1]\n", "'x': .* lists of one length, not 2 and 1"),
        ("a.tsv", HEAD + "x\tdot\t-1\n", "lists of one length, not 0 and 0"),
        ("a.tsv", HEAD + "x\t\t\n", "lists of one length, not 0 and 0"),
        ("a.tsv", HEAD + 'x\t["dots"]\t[-1]\n', "option 'dots' is neither a class name"),
        ("a.tsv", HEAD + "x\t[3]\t[-1]\n", "option 3 is neither .* a number from 0 to 2"),
        ("a.tsv", HEAD + "x\t[-1]\t[-1]\n", "option -1 is neither"),
        ("a.tsv", HEAD + "x\t[true]\t[-1]\n", "option True is neither"),
        ("a.tsv", HEAD + "x\t[0.5]\t[-1]\n", r"option 0\.5 is neither"),
        ("a.tsv", HEAD + 'x\t["dot", 0]\t[-1, -2]\n', "a class is among the options twice"),
        ("a.tsv", HEAD + 'x\t[0]\t["a"]\n', "'a' is not a log-probability"),
        ("a.tsv", HEAD + "x\t[0]\t[NaN]\n", "nan is not a log-probability"),
        ("a.tsv", HEAD + "x\t[0, 1]\t[-inf, -inf]\n", "every option has .* -inf"),
        ("a.tsv", HEAD + "x\t[0]\t[-1]\nx\t[0]\t[-1]\n", "there are two rows of it"),
    ],
    ids=str,
)
def test_other_forms_are_refused_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_own_scores(str(tmp_path / name), CLASSNAMES)
    assert "scores.file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_key_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv does not exist"):
        read_own_scores(str(tmp_path / "nowhere.csv"), CLASSNAMES)
    with pytest.raises(UserError, match=r"needs scores\.file, or set scores\.kind to null"):
        read_own_scores(None, CLASSNAMES)


CELL = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@settings(deadline=None)
@given(CELL, CELL, CELL)
def test_whatever_a_row_holds_it_is_read_or_refused_in_one_sentence(
    tmp_path_factory, image_id, options, values
):
    path = tmp_path_factory.mktemp("own") / "mine.jsonl"
    row = {"image_id": image_id, "options": options, "log_probabilities": values}
    path.write_text(json.dumps(row) + "\n")
    try:
        [scores] = read_own_scores(str(path), ["a", "b", "c"]).values()
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert len(scores.options) == len(scores.log_probabilities) > 0
    assert all(isinstance(value, float) for value in scores.log_probabilities)
