import json

import pyarrow as pa
import pytest
from support import records

from latteclip.cli import estimate, main
from latteclip.core import run_options, tables
from latteclip.core.errors import UserError
from latteclip.core.metadata import IndexMetadata

FINETUNE = "finetune={'batch_size': 32, 'epochs': 2}"
CONFIG = ["method=zero_shot,flyp,image_prototypes", "seeds=1", FINETUNE]


def write(path, schema, metadata, **columns):
    n = len(next(iter(columns.values()), ()))
    nothing = {column.name: pa.nulls(n, column.type) for column in schema}
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write(path, nothing | columns, schema, metadata)


@pytest.fixture
def limited(tmp_path, monkeypatch):
    """A limited run of 64 of 640 training and 64 of 1,280 test images, with what it took."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "demo_64"
    whole = IndexMetadata(["a", "b"], limit=64, drawn_from={"train": 640, "test": 1280})
    splits = ["train"] * 64 + ["test"] * 64
    write(folder / "images.parquet", tables.IMAGES, whole, split=splits)
    tokens = records.captions_metadata(tokens_read=6400, tokens_written=640)
    write(
        folder / "captions" / "images.parquet", tables.CAPTIONS, tokens, digest=["a"] * 64
    )
    (folder / "report.html").write_text("")
    for name, seconds, gpus in (
        ("benchmarks/index_images", 4, 0),
        ("benchmarks/pseudo_label_images", 12, 1),
        ("benchmarks/caption_images", 200, 2),
        ("benchmarks/select_model", 2, 0),
        ("image_prototypes/seed0/benchmarks/assemble_model", 10, 0),
        ("flyp/seed0/benchmarks/finetune", 16, 1),
    ):
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"s": seconds, "resources": {"gpu": gpus}}))
    (folder / "logs").mkdir()
    (folder / "logs" / "caption_images.log").write_text(
        "Asked 64 requests about 64 rows in 20.0 s"
    )
    (folder / "logs" / "index_images.log").write_text(
        "Indexed 128 images of 2 classes in 2.0 s"
    )
    history = folder / "flyp" / "seed0" / "history.parquet"
    write(history, tables.HISTORY, None, images_per_second=[16.0] * 4)
    return folder


def rows(text):
    """Each line by its first word."""
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


def test_work_that_is_measured_is_scaled_and_loading_is_not(limited):
    found = rows(estimate.estimate(["demo"], CONFIG, []))
    assert found["index_images"][2:] == ["0:00:04", "0:00:02", "images", "0:00:32"]
    assert found["caption_images"][2:4] == ["0:03:20", "0:03:00"]
    assert found["caption_images"][-1] == "0:06:20"  # 180 + 10 * 20
    assert found["finetune"][-1] == "0:01:28"  # 8 + 10 * 8: 1,280 samples at 16 a second
    assert found["assemble_model"][-1] == "0:00:10"
    assert found["tokens:"][1:4] == ["64,000", "read,", "6,400"]


def cost(limited, *options):
    """The line on what the answers cost."""
    text = estimate.estimate(["demo"], [*CONFIG, *options], [])
    [line] = [line for line in text.splitlines() if "cost of the answers" in line]
    return line


def test_money_is_what_the_server_counted_or_by_the_prices(limited):
    assert "unknown" in cost(limited)
    prices = "captioner={'price_input': 2.0, 'price_output': 10.0}"
    assert ": 0.192, by captioner.price_input" in cost(limited, prices)
    tokens = records.captions_metadata(tokens_read=6400, tokens_written=640, cost=0.05)
    path = limited / "captions" / "images.parquet"
    write(path, tables.CAPTIONS, tokens, digest=["a"] * 64)
    assert ": 0.5, as the server counted" in cost(limited)
    assert "no max_cost ends it" in cost(limited, "max_cost=0.3", prices)


def test_names_of_images_count(limited):
    tokens = records.captions_metadata(tokens_read=640, tokens_written=64, cost=0.01)
    write(limited / "names.parquet", tables.CAPTIONS, tokens, digest=["a"] * 64)
    found = rows(estimate.estimate(["demo"], CONFIG, []))
    assert found["tokens:"][1:4] == ["70,400", "read,", "7,040"]
    assert ": 0.1, as the server counted" in cost(limited)


def test_a_limit_of_no_image_is_refused(limited):
    with pytest.raises(UserError, match="limit"):
        estimate.estimate(["demo"], ["limit=0"], [])


def test_work_that_is_not_measured_has_bounds(limited):
    found = rows(estimate.estimate(["demo"], CONFIG, []))
    assert found["pseudo_label_images"][2:4] == ["0:00:12", "0:00:10"]
    assert found["pseudo_label_images"][-3:] == ["0:00:12", "to", "0:00:40"]
    assert found["in"][-3:] == ["0:08:44", "to", "0:09:12"]
    assert found["GPU"][-3:] == ["0:14:20", "to", "0:14:48"]


def test_kept_answers_are_asked_for_in_the_full_run(limited):
    log = limited / "logs" / "caption_images.log"
    log.write_text("Asked 32 requests about 64 rows in 10.0 s")
    found = rows(estimate.estimate(["demo"], CONFIG, []))
    assert found["caption_images"][-1] == "0:06:30"  # 190 + 2 * 10 * 10


def test_a_folder_of_images_is_estimated_by_the_options_of_its_limited_run(limited):
    limited.rename(limited.with_name("mine_64"))
    (limited.parents[1] / "photos").mkdir()
    noted = run_options.NOTES / "mine_64.json"
    noted.parent.mkdir(parents=True)
    options = {
        "dataset": "mine",
        "image_dir": "photos",
        "limit": 64,
        "method": "zero_shot,flyp",
    }
    noted.write_text(json.dumps({"config": options, "deployment": []}))
    found = rows(estimate.estimate(["mine"], [], []))
    assert found["index_images"][2:] == ["0:00:04", "0:00:02", "images", "0:00:32"]


def test_what_the_limited_run_does_not_tell_is_said(limited):
    (limited / "report.html").unlink()
    (limited / "logs" / "caption_images.log").write_text(
        "Asked 0 requests about 64 rows in 0.0 s"
    )
    found = estimate.estimate(["demo"], CONFIG, [])
    assert "not finished" in found and "earlier runs" in found


def test_programs_read_the_estimate(limited, capsys):
    words = ["status", "demo", "--estimate", "--json", "--config", *CONFIG]
    prices = "captioner={'price_input': 2, 'price_output': 5}"
    assert main.main([*words, prices]) == 0
    [found] = json.loads(capsys.readouterr().out)["datasets"]
    assert (found["dataset"], found["images"]) == ("demo", 1920)
    assert (found["training_images"], found["limited_training_images"]) == (640, 64)
    stages = {row["stage"]: row for row in found["stages"]}
    index = stages["index_images"]
    assert (index["grows_with"], index["jobs"]) == ("images", 1)
    assert (index["limited"], index["loading"], index["most"]) == (4, 2, 32)
    assert stages["select_model"]["grows_with"] is None
    assert found["gpu_seconds"]["least"] <= found["gpu_seconds"]["most"]
    assert found["tokens"] == {"read": 64_000, "written": 6_400}
    assert found["cost"] == pytest.approx(0.128 + 0.032)
    assert found["is_finished"] and found["asks_nothing"] == []
    assert found["disk_bytes"] > 0


@pytest.mark.parametrize("arguments", [["dtd"], ["--config", "dataset=dtd", "limit=8"]])
def test_without_a_limited_run_the_command_that_makes_one_is_named(
    limited, arguments, capsys
):
    assert main.main(["status", "--estimate", *arguments]) == 0
    assert "--config dataset=dtd limit=" in capsys.readouterr().out
