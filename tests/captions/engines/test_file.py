import json
import math

import pandas as pd
import pytest

from latteclip.captions.engines.file import read_captions, read_scores
from latteclip.core.errors import UserError

SUFFIXES = [".parquet", ".csv", ".tsv", ".jsonl"]
CLASSNAMES = ["dot", "dotted", "red lines"]
CAPTIONS = pd.DataFrame({"image_id": ["a/1.png", "007"], "caption": ['a "dot", red', "NA"]})
SCORES = [("a/1.png", ["red lines", "dot"], [-0.5, -2.25]), ("007", [1, 0], [-math.inf, -1.0])]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_captions_are_the_same_in_all_forms(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    write = {
        ".parquet": lambda: CAPTIONS.to_parquet(path),
        ".csv": lambda: CAPTIONS.to_csv(path, index=False),
        ".tsv": lambda: CAPTIONS.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: CAPTIONS.to_json(path, orient="records", lines=True),
    }
    write[suffix]()
    assert read_captions(str(path), "images") == {"a/1.png": 'a "dot", red', "007": "NA"}


def write_scores(path):
    table = pd.DataFrame(SCORES, columns=["image_id", "options", "log_probabilities"])
    if path.suffix == ".parquet":
        table["options"] = [[2, 0], [1, 0]]  # a column has one type
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    else:
        table["options"] = table["options"].map(json.dumps)
        table["log_probabilities"] = ["[-0.5, -2.25]", "[-inf, -1]"]
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_scores_are_the_same_in_all_forms(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    write_scores(path)
    assert read_scores(str(path), CLASSNAMES) == {
        "a/1.png": ([2, 0], [-0.5, -2.25]),
        "007": ([1, 0], [-math.inf, -1.0]),
    }


HEAD = "image_id\toptions\tlog_probabilities\n"


@pytest.mark.parametrize(
    ("read", "name", "content", "message"),
    [
        ("captions", "a.txt", "", r"a\.txt"),
        ("captions", "a.csv", "image_id,text\n1,x\n", "caption"),
        ("captions", "a.csv", "image_id,caption\n1,x\n1,y\n", "'1'"),
        ("captions", "a.parquet", "no parquet", r"a\.parquet"),
        ("captions", "a.jsonl", "[" * 9999, r"a\.jsonl"),
        ("scores", "a.jsonl", "{", r"a\.jsonl"),
        ("scores", "a.csv", "image_id,options\n1,[0]\n", "log_probabilities"),
        ("scores", "a.tsv", HEAD + "x\t[0, 1]\t[-1]\n", "'x'"),
        ("scores", "a.tsv", HEAD + 'x\t["dots"]\t[-1]\n', "'dots'"),
        ("scores", "a.tsv", HEAD + "x\t[true]\t[-1]\n", "True"),
        ("scores", "a.tsv", HEAD + 'x\t["dot", 0]\t[-1, -2]\n', "'x'"),
        ("scores", "a.tsv", HEAD + "x\t[0]\t[NaN]\n", "nan"),
        ("scores", "a.tsv", HEAD + "x\t[0, 1]\t[-inf, -inf]\n", "-inf"),
    ],
    ids=str,
)
def test_other_forms_are_refused_in_one_sentence(tmp_path, read, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        if read == "captions":
            read_captions(str(tmp_path / name), "images")
        else:
            read_scores(str(tmp_path / name), CLASSNAMES)
    assert {"captions": "captioner.images_file", "scores": "scores.file"}[read] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_key_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        read_captions(str(tmp_path / "nowhere.csv"), "groups")
    with pytest.raises(UserError, match=r"captioner\.groups_file"):
        read_captions(None, "groups")
    with pytest.raises(UserError, match=r"scores\.file"):
        read_scores(None, CLASSNAMES)
