"""What a run would ask, and at what price, before anything is asked."""

import json

import pytest
from support import records
from support.tiny import write_index

from latteclip.cli import main, questions
from latteclip.config import layers
from latteclip.config.configuration import Configuration
from latteclip.core import tables
from latteclip.core.metadata import IndexMetadata

SERVER = {"engine": "openai", "model": "m", "price_input": 2.0, "price_output": 10.0}
LETTERS = {"kind": "multiple_choice", "share": 0.5}
ALONE = {"dataset": "demo", "method": "zero_shot,image_prototypes"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(pending=None, **given):
    found = Configuration(layers.defaults(project=None), {**ALONE, **given})
    return list(questions.lines(found, "demo", pending))


def indexed(folder, sizes):
    """An index of training images of these sizes, and of a test image."""
    path = folder / "results" / "demo" / "images.parquet"
    path.parent.mkdir(parents=True)
    files = [f"{number}.png" for number in range(len(sizes) + 1)]
    splits = ["train"] * len(sizes) + ["test"]
    write_index(path, files, splits, [0] * len(files), ["a", "b"])
    metadata = tables.read_metadata(path, IndexMetadata)
    columns = tables.read(path, tables.IMAGES).to_pydict()
    columns["width"], columns["height"] = zip(*sizes, (9000, 9000), strict=True)
    tables.write(path, columns, tables.IMAGES, metadata)


def test_what_is_not_known_is_said():
    head, captions, price = plan(captioner={"engine": "openai", "model": "m"})
    assert "demo" in head
    assert "captions of images by m: 1,500 requests, tokens not known, price not known" in (
        captions
    )
    assert "price not known" in price and "captioner.price_input" in price
    [_, captions, price] = plan(captioner={**SERVER, "max_cost": 0.2})
    assert captions.endswith("price not known, ended at 0.2")
    assert "at most 0.2. " in price


def test_a_model_that_runs_here_has_no_price():
    [_, captions] = plan()
    assert "1,500 requests" in captions and "price" not in captions


def test_a_llava_reads_what_is_typical():
    model = {
        **SERVER,
        "model": "llava-hf/llava-v1.6-mistral-7b-hf",
        "max_new_tokens": 77,
    }
    [_, captions, price] = plan(captioner=model)
    # 1,200 tokens read and 77 written, at 2 and 10 for a million.
    assert f"about {1500 * 1277:,} tokens" in captions and "typical" in captions
    assert price.endswith(f"{1500 * (1200 * 2 + 77 * 10) / 1e6:.4g}")


def test_decisions_are_counted_by_the_sizes_of_the_images(folder):
    decides = {"engine": "decisions", "model": "m", "price_input": 0.04}
    scores = {"scores": {"kind": "decisions", "orders": 2}, "captioner": decides}
    scores["captioner"] |= {"max_image_side": None, "square_side": None}
    [_, line, _] = plan(**scores)
    assert "tokens not known" in line
    indexed(folder, [(64, 32), (1000, 500)])
    scores["captioner"] |= {"max_image_side": 100, "square_side": None}
    [_, line, _] = plan(**scores)
    tiles = 2 * 1 + 4 * 2
    assert f"2 requests, about {tiles + 2 * (95 + 2 * 92)} tokens" in line
    scores["scores"] |= {"examples": 1, "topk": 3}
    [_, line, _] = plan(**scores)
    assert f"about {4 * (tiles + 2 * 95) + 2 * 2 * 92:,} tokens" in line


def test_a_folder_has_at_most_as_many_images_as_files(folder):
    photos = folder / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").touch()
    (photos / "notes.txt").touch()
    given = Configuration(
        layers.defaults(project=None),
        {
            "dataset": "mine",
            "image_dir": str(photos),
            "scores": {"kind": "decisions"},
            "captioner": {
                "engine": "decisions",
                "model": "m",
                "max_image_side": 64,
                "price_input": 0.04,
            },
        },
    )
    [_, line, price] = questions.lines(given, "mine")
    n_tokens = 3 * (2 * 2 + 95 + 2 * 92)  # each image is asked about in two orders
    assert f"at most 3 requests, about {n_tokens} tokens" in line
    assert price.endswith(f"{n_tokens * 0.04 / 1e6:.4g}")


def scored(folder, place, model="m"):
    """A table of class scores of four requests about eight images, which cost 0.02."""
    path = folder / "results" / place / "class_scores.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    digests = ["a", "b", "c", "d", *[None] * 4]
    nothing = {name: [None] * 8 for name in tables.CLASS_SCORES.names}
    cost = {"tokens_read": 400, "tokens_written": 8, "cost": 0.02}
    metadata = records.scores_metadata(model, **cost)
    tables.write(path, nothing | {"digest": digests}, tables.CLASS_SCORES, metadata)


def test_a_limited_run_tells_tokens_and_price(folder):
    given = {"captioner": {"engine": "openai", "model": "m"}, "scores": LETTERS}
    scored(folder, "demo_8", model="other")
    assert "tokens not known" in plan(**given)[1]
    scored(folder, "demo_64")
    [_, line, price] = plan(**given)
    assert (
        f"750 requests, about {750 * 102:,} tokens, price about {750 * 0.005:.4g}" in line
    )
    assert "demo_64" in line and price.endswith("3.75")
    [_, _, price] = plan(**given, max_cost=1.5)
    assert price.endswith("1.5")


def test_what_a_run_does_not_write_is_not_asked_for():
    voters = [
        {"name": "words", "kind": "captions"},
        {"name": "q", "kind": "multiple_choice", "engine": "openai", "model": "m"},
    ]
    assert plan([], voters=voters) == []
    [_, line, _] = plan(["results/demo/voters/q.parquet"], voters=voters)
    assert "of the voter q" in line
    [_, line] = plan(["results/demo/captions/shards/images-1-of-2.parquet"], voters=voters)
    assert "captions of images" in line


def test_the_command_says_it_without_a_limited_run(capsys):
    assert (
        main.main(["status", "--estimate", "dtd", "--config", "method=flyp,latteclip"]) == 0
    )
    said = capsys.readouterr().out
    assert "dtd: to ask" in said and "captions of groups" in said
    assert "--config dataset=dtd limit=" in said
    options = ["--json", "--config", "method=flyp,latteclip", "max_cost=900 tokens"]
    assert main.main(["status", "--estimate", "dtd", *options]) == 0
    [found] = json.loads(capsys.readouterr().out)["datasets"]
    assert found["limited_run"] is None
    images, groups = found["asks"]
    assert images["table"] == "captions/images.parquet" and images["tokens"] > 1e6
    assert groups["max_cost"] == "450 tokens" and groups["tokens"] is None
