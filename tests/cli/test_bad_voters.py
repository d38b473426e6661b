"""What users get wrong about voters: by the command, one sentence and nothing written."""

import json

import pytest
from support.captioning import SETTINGS, of_engine
from support.scoring import N, ScoredDataset
from support.sections import changed
from support.servers import DecisionServer
from support.servers import decisions as server  # noqa: F401
from support.tiny import write_index

from latteclip.cli import main
from latteclip.core import tables

IDS = [f"{number}.png" for number in range(10)]
WORDS = "{name: words, kind: captions}"


def refused(capsys, *command):
    """The sentence with which a command refuses."""
    assert main.main([*map(str, command)]) == main.BAD_INPUT
    text = f"\n{capsys.readouterr().err.strip()}"
    assert "Traceback" not in text
    assert text.count("\nerror: ") == 1
    return text.rpartition("\nerror: ")[2]


# --- the configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "names"),
    [
        (f"voters=[{WORDS}, {WORDS}]", ["voters", "two voters called words"]),
        ("voters=[{name: a, kind: captions, max_images: 0}]", ["voters.0.max_images", "0"]),
        ("scores={'max_images': 0}", ["scores.max_images"]),
        ("captioner={'max_images': 'few'}", ["captioner.max_images", "few"]),
        ("max_cost=1", ["max_cost was removed", "max_images"]),
        ("scores={'rounds': 2}", ["scores.rounds was removed"]),
    ],
)
def test_a_configuration_with_an_impossible_voter_or_number(
    tmp_path, monkeypatch, capsys, pair, names
):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "status", "--estimate", "demo", "--config", pair)
    assert all(name in said for name in names)
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


# --- a file of votes -----------------------------------------------------------------------------

GOOD = [f"{image_id},dotted" for image_id in IDS]
SHARES = [f'{image_id},"[0.5, 0.5]"' for image_id in IDS]


@pytest.mark.parametrize(
    ("head", "lines", "names"),
    [
        ("class", [*GOOD[:-1], f"{IDS[-1]},cat"], [IDS[-1], "'cat' is no class"]),
        ("class", GOOD[:5], ["5 of 10", "share"]),
        ("class", [*GOOD, f"{IDS[0]},woven"], [f"two rows for {IDS[0]!r}"]),
        (
            "probabilities",
            [*SHARES[:-1], f'{IDS[-1]},"[1.5, -0.5]"'],
            [IDS[-1], "negative"],
        ),
        ("probabilities", [*SHARES[:-1], f'{IDS[-1]},"[NaN, 1]"'], [IDS[-1], "no number"]),
        ("probabilities", [*SHARES[:-1], f'{IDS[-1]},"[1, 2]"'], [IDS[-1], "sum to 3"]),
        (
            "probabilities",
            [f'{image_id},"[0.2, 0.3, 0.5]"' for image_id in IDS],
            [IDS[0], "2 classes and 3 probabilities"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_file_of_votes_that_cannot_be_used(tmp_path, capsys, head, lines, names):
    index = tmp_path / "images.parquet"
    write_index(index, IDS, ["train"] * 10, [None] * 10, ["dotted", "woven"])
    path = tmp_path / "mine.csv"
    path.write_text("\n".join([f"image_id,{head}", *lines]))
    voter = json.dumps({"name": "mine", "kind": "file", "file": str(path)})
    output = tmp_path / "votes.parquet"
    options = ["--images", index, "--settings", voter, "--output", output]
    said = refused(capsys, "write-votes", *options, "--threads", 1)
    assert str(path) in said and all(name in said for name in names)
    assert {file.name for file in tmp_path.iterdir()} == {index.name, path.name}


# --- a service -----------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path, server):  # noqa: F811
    """The command that asks a decision model, and the dataset."""
    scored = ScoredDataset(tmp_path, 4)
    engine = {
        "model": DecisionServer.model,
        "requests_per_second": 1000,
        "retries": 0,
        "concurrency": 1,
    }
    settings = changed(SETTINGS, **{**engine, **of_engine("decisions"), "max_failed": 0.2})
    images, labels, embeddings = scored.inputs
    command = [
        *("score-classes", "--images", images, "--pseudo-labels", labels),
        *("--class-embeddings", embeddings, "--scores", '{"kind": "decisions"}'),
        *("--prompt=", "--captioner", json.dumps(settings.model_dump())),
        *("--store", scored.folder / "store", "--output", scored.output, "--threads", 1),
    ]
    return scored, command


def test_a_service_that_answers_for_another_image(asked, server, capsys):  # noqa: F811
    """One such answer is none, and many of them end the command."""
    scored, command = asked
    replies = []

    def change(number, reply):
        replies.append(reply)
        return replies[0] if number in wrong else reply

    server.change = change
    wrong = {*range(1, N)}
    said = refused(capsys, *command)
    assert "captioner.max_failed" in said and "in place of" in said
    assert not scored.output.exists()
    wrong = {len(replies)}
    assert main.main([*map(str, command)]) == 0
    columns = tables.read(scored.output, tables.CLASS_SCORES).to_pydict()
    assert sum(error is not None for error in columns["error"]) == 1
    assert [bool(options) for options in columns["options"]].count(True) == N - 1
