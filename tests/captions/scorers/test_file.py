import json
import math

import pandas as pd
import pytest

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


def test_an_image_that_the_file_lacks_has_an_error(tmp_path):
    write(tmp_path / "mine.csv")
    own = OwnScores(str(tmp_path / "mine.csv"), CLASSNAMES)
    assert own("a/1.png").error is None
    assert own("other.png").error == "the file has no scores of it"


HEAD = "image_id\toptions\tlog_probabilities\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt"),
        ("a.jsonl", "{", r"a\.jsonl"),
        ("a.csv", "image_id,options\n1,[0]\n", "log_probabilities"),
        ("a.tsv", HEAD + "x\t[0, 1]\t[-1]\n", "'x'"),
        ("a.tsv", HEAD + 'x\t["dots"]\t[-1]\n', "'dots'"),
        ("a.tsv", HEAD + "x\t[true]\t[-1]\n", "True"),
        ("a.tsv", HEAD + 'x\t["dot", 0]\t[-1, -2]\n', "'x'"),
        ("a.tsv", HEAD + "x\t[0]\t[NaN]\n", "nan"),
        ("a.tsv", HEAD + "x\t[0, 1]\t[-inf, -inf]\n", "-inf"),
        ("a.tsv", HEAD + "x\t[0]\t[-1]\nx\t[0]\t[-1]\n", "'x'"),
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
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        read_own_scores(str(tmp_path / "nowhere.csv"), CLASSNAMES)
    with pytest.raises(UserError, match=r"scores\.file"):
        read_own_scores(None, CLASSNAMES)
