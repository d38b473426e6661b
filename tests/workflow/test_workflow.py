import json
import os
import re
import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from open_clip import create_model_and_transforms
from safetensors.torch import load_file, save_file
from support.checkout import N_TEST, N_TRAIN, hear_interrupts
from support.image_folders import class_folders
from support.tiny import DEMO_CLIP, write_encoder, write_pictures

from latteclip.core import tables
from latteclip.core.metadata import IndexMetadata

RESULTS = "results/demo"


def planned(checkout, *config):
    """The jobs of a dry run, as {rule: number}."""
    run = checkout.snakemake("--dry-run", "--config", "seeds=1", *config)
    assert run.returncode == 0, run.stdout
    if "Nothing to be done" in run.stdout:
        return {}
    table = run.stdout.split("Job stats:")[1].split("total")[0]
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE))
    return {rule: int(n) for rule, n in jobs.items() if rule != "all"}


def parquet(checkout, name):
    return pq.read_table(checkout.root / RESULTS / name).to_pydict()


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_ends_with_the_table(finished):
    lines = (finished.root / "results" / "summary.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]]
    assert [row[:3] for row in rows] == [
        ["demo", "zero_shot ★", "1"],  # of so few images none is left out
        ["demo", "flyp", "1"],
        ["demo", "latteclip", "1"],
    ]
    assert (finished.root / "results" / "summary.csv").is_file()


def test_every_stage_covers_its_images(finished):
    index = parquet(finished, "images.parquet")
    train = [
        i for i, s in zip(index["image_id"], index["split"], strict=True) if s != "test"
    ]
    assert len(index["image_id"]) == N_TRAIN + N_TEST
    assert len(train) == N_TRAIN
    assert parquet(finished, "pseudo_labels.parquet")["image_id"] == index["image_id"]
    assert parquet(finished, "captions/images.parquet")["id"] == train
    groups = parquet(finished, "captions/groups.parquet")
    assert len(groups["id"]) == N_TRAIN
    assert {member for members in groups["members"] for member in members} <= set(train)
    for method in ("zero_shot", "flyp", "latteclip"):
        predictions = parquet(finished, f"{method}/seed0/predictions.parquet")
        assert len(predictions["image_id"]) == N_TEST
        assert not set(predictions["image_id"]) & set(train)


def test_tuned_models_are_stock_open_clip_folders(finished):
    for method in ("flyp", "latteclip"):
        folder = finished.root / RESULTS / method / "seed0" / "model"
        model, _, _ = create_model_and_transforms(f"local-dir:{folder}")
        assert torch.isfinite(model.encode_image(torch.zeros(1, 3, 64, 64))).all()
        assert (folder / "prototypes.safetensors").is_file()


def test_the_model_that_was_chosen_is_there_to_predict(finished):
    """Of so few images none is left out to judge, and zero-shot is the safest."""
    choice = json.loads((finished.root / RESULTS / "selection.json").read_text())
    assert (choice["method"], choice["seed"]) == ("zero_shot", 0)
    assert {row["acc1"] is None for row in choice["candidates"]} == {False}
    picture = next((finished.root / "resources" / "demo" / "data").rglob("*.png"))
    run = finished.latteclip("predict", RESULTS, picture)
    assert run.returncode == 0, run.stdout
    run = finished.latteclip("export", RESULTS, "exported", "--format", "open_clip")
    assert run.returncode == 0, run.stdout
    assert choice["reason"] in (finished.root / "exported" / "README.md").read_text()


def test_trainings_share_decoded_images_until_the_run_ends(finished):
    log = (finished.root / RESULTS / "flyp/seed0/logs/finetune.log").read_text()
    assert "shared with other trainings in resources/demo/decoded" in log
    assert not (finished.root / "resources/demo/decoded").exists()


def test_a_limited_run_has_results_of_its_own(finished):
    _, outputs = inputs_and_outputs(finished, "limit=8")
    assert outputs["results/summary_8.csv"] == "summarize"
    assert outputs["results/index_8.html"] == "index_results"
    tables = ("results/summary_8.", "results/index_8.")
    assert all(path.startswith(("results/demo_8/", *tables)) for path in outputs)


def test_the_trainings_of_an_average_are_not_evaluated(finished):
    jobs = planned(finished, "seeds=2", "method=recommended")
    assert (jobs["finetune"], jobs["average_weights"], jobs["evaluate"]) == (2, 1, 1)


def test_a_run_ends_with_where_the_results_are(finished):
    (finished.root / "results" / "index.html").unlink()
    run = finished.snakemake("--config", "seeds=1")
    assert run.returncode == 0, run.stdout
    elapsed = run.stdout.index("Elapsed time")
    ended = run.stdout.rindex("demo: 100 images")
    assert run.stdout.index("demo: 100 images of ") < elapsed < ended
    assert "rule index_results:" in finished.log()
    assert "rule index_results:" not in run.stdout
    assert "results/demo/report.html" in run.stdout[ended:]
    assert "latteclip predict results/demo" in run.stdout[ended:]
    assert planned(finished) == {}


# --- reruns: what was edited, and the jobs that a dry run then wants -----------------------------

PAGES = {"summarize": 1, "report_dataset": 1, "index_results": 1}
COLLECTED = {"select_model": 1, **PAGES}
# flyp and latteclip
TUNED = {"list_training_images": 2, "finetune": 2, "evaluate": 2, **COLLECTED}
# latteclip
TUNED_ON_CAPTIONS = {"list_training_images": 1, "finetune": 1, "evaluate": 1, **COLLECTED}
NEW_GROUPS = {"summarize_captions": 1, **TUNED_ON_CAPTIONS}
NEW_CAPTIONS = {"fuse_labels": 1, **NEW_GROUPS}
NEW_CLIP = {
    **{"pseudo_label_images": 1, "score_unknown": 1, "assemble_model": 1},
    **{"evaluate_classifier": 1, "caption_groups": 1, **NEW_CAPTIONS, **TUNED},
}


def in_file(name):
    """An edit that changes what a Python or Markdown file says, but not what it does."""

    def change(checkout):
        with (checkout.root / name).open("a") as file:
            file.write("\n# Edited.\n")

    return change


def touched(name):
    def change(checkout):
        os.utime(checkout.root / name)

    return change


def answered(checkout):
    """A person's answers, and how their images were drawn."""
    folder = checkout.root / RESULTS / "audit" / "test"
    folder.mkdir(parents=True)
    (folder / "plan.parquet").write_bytes(b"")
    (folder / "answers.json").write_text('{"plan": "0", "answers": []}')


def taught(checkout):
    """A person's answers about training images."""
    (checkout.root / RESULTS / "answers.json").write_text(
        '{"plan": "teach", "answers": []}'
    )


# What decides and what does not: settings, files of code by their content, answers. Which stages
# import which module is the matter of tests/config/test_stage_code.py.
SHARDED = {"caption_images_shard": 2, "caption_groups_shard": 2, "gather_captions": 2}
MODELS = "latteclip/demo/models"
SETTINGS = {
    "finetune={'lr': 1e-4}": TUNED,
    "prompts={'image': 'What is this?'}": {"caption_images": 1, **NEW_CAPTIONS},
    "captions={'shards': 2}": {**SHARDED, **NEW_CAPTIONS},
}
EDITS = {
    # No training learns from it.
    "an audit": (answered, {"score_audit": 1, "state_accuracy": 1, **COLLECTED}),
    # flyp reads no such labels
    "answers that teach": (taught, {"fuse_labels": 1, "score_unknown": 1, **COLLECTED}),
    "an objective": (in_file("latteclip/train/objectives/latteclip.py"), TUNED_ON_CAPTIONS),
    "the engine that runs": (
        in_file("latteclip/captions/engines/transformers.py"),
        {"caption_images": 1, "caption_groups": 1, **NEW_CAPTIONS},
    ),
    "a template of the pages": (
        in_file("latteclip/report/templates/page.css"),
        {"report_dataset": 1, "index_results": 1},
    ),
    "time of base.py": (touched("latteclip/train/objectives/base.py"), {}),
    "another CLIP in its folder": (
        in_file(f"{MODELS}/clip/tokenizer_config.json"),
        NEW_CLIP,
    ),
    "another captioner in its folder": (
        in_file(f"{MODELS}/llava/tokenizer_config.json"),
        {"caption_images": 1, "caption_groups": 1, **NEW_CAPTIONS},
    ),
    "times of a model": (touched(f"{MODELS}/clip/open_clip_model.safetensors"), {}),
}


@pytest.fixture
def edited(finished):
    """The finished checkout, whose code and configuration come back after the test."""
    before = {
        path: (path.read_bytes(), path.stat())
        for name in ("latteclip", "config", "README.md")
        for path in [finished.root / name, *(finished.root / name).rglob("*")]
        if path.is_file() and path.suffix in (".py", ".yaml", ".md", ".css", ".json")
    }
    yield finished
    for path, (content, stat) in before.items():
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    shutil.rmtree(finished.root / RESULTS / "audit", ignore_errors=True)
    (finished.root / RESULTS / "answers.json").unlink(missing_ok=True)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_reruns_what_reads_it_and_nothing_else(finished, setting):
    assert planned(finished, setting) == SETTINGS[setting]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_what_depends_on_it_and_nothing_else(edited, name):
    change, wanted = EDITS[name]
    change(edited)
    assert planned(edited) == wanted


def changed_weights(path):
    """Other weights in a file that keeps its time, as with `cp -p`."""
    stat = path.stat()
    flipped = {
        name: tensor.flip([*range(tensor.ndim)]) for name, tensor in load_file(path).items()
    }
    save_file(flipped, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.slow
def test_other_weights_in_the_folder_of_a_model_are_read_and_never_mixed_with_old_ones(
    checkout, tmp_path
):
    clip, encoder, weights = (
        checkout.root / "clip",
        checkout.root / "encoder",
        "open_clip_model.safetensors",
    )
    shutil.copytree(DEMO_CLIP, clip)
    write_encoder(encoder)
    pictures = class_folders(tmp_path / "pictures", n=6)
    configured = mine(
        checkout, pictures, clip={"model": "local-dir:clip", "pretrained": None}
    )
    features = "results/mine/image_encoders/local-dir--encoder.parquet"
    asked = ["results/mine/zero_shot/seed0/model", features, *configured]
    asked += ["--config", "image_encoders=local-dir:encoder"]

    def made():
        run = checkout.snakemake(*asked)
        assert run.returncode == 0, run.stdout
        made = checkout.root / asked[0]
        tower, classifier = (
            load_file(made / weights),
            load_file(made / "prototypes.safetensors"),
        )
        assert torch.equal(
            tower["text_projection"], load_file(clip / weights)["text_projection"]
        )
        return classifier["classifier"], pq.read_table(checkout.root / features)

    classifier, table = made()
    changed_weights(clip / weights)
    changed_weights(encoder / "model.safetensors")
    other_classifier, other_table = made()
    assert not torch.allclose(other_classifier, classifier, atol=0.01)
    assert not other_table.equals(table)


def test_the_target_labels_stops_at_labels_and_a_classifier(checkout):
    """Whatever the methods read: zero-shot asks for no captions."""
    given = ["dataset=demo", "method=zero_shot"]
    run = checkout.snakemake("labels", "--dry-run", "--config", *given)
    assert run.returncode == 0, run.stdout
    jobs = set(re.findall(r"^(?:local)?rule (\w+):", run.stdout, re.MULTILINE))
    assert jobs == {
        *("index_images", "pseudo_label_images", "caption_images", "fuse_labels"),
        *("score_unknown", "assemble_model", "labels"),
    }


def test_a_deleted_result_is_made_again_though_the_table_stands(finished):
    metrics = finished.root / "results/demo/flyp/seed0/metrics.json"
    aside = metrics.rename(metrics.with_suffix(".aside"))
    try:
        assert planned(finished) == {"evaluate": 1, **COLLECTED}
    finally:
        aside.rename(metrics)


# --- models of the hub are fetched by jobs of their own ------------------------------------------

CLIP = "resources/models/ViT-B-32@laion2b_s34b_b79k.json"
CAPTIONER = "resources/models/llava-hf--llava-v1.6-mistral-7b-hf.json"
LOADS_CLIP = {"pseudo_label_images", "finetune", "fuse_labels", "assemble_model"}
LOADS_CAPTIONER = {"caption_images", "caption_groups"}


def inputs_and_outputs(checkout, *config, path=()):
    """Of the jobs of a dry run: {rule: inputs} and {output: rule}."""
    run = checkout.snakemake("--dry-run", "--config", "seeds=1", *config, path=path)
    assert run.returncode == 0, run.stdout
    inputs, outputs, rule = {}, {}, ""
    for line in run.stdout.split("Job stats:")[1].splitlines():
        key, _, value = line.strip().partition(" ")
        if key in ("rule", "localrule"):
            rule = value.rstrip(":")
        elif key == "input:":
            inputs.setdefault(rule, set()).update(value.split(", "))
        elif key == "output:":
            outputs |= dict.fromkeys(value.split(", "), rule)
    return inputs, outputs


def notes(outputs):
    """The notes on models among the outputs, with the rules that write them."""
    return {
        file: rule for file, rule in outputs.items() if file.startswith("resources/models/")
    }


def test_each_model_is_fetched_once_and_before_the_stages_that_load_it(
    checkout, no_heavy_imports
):
    config = ["dataset=dtd,eurosat", "method=zero_shot,latteclip,flyp_fused"]
    inputs, outputs = inputs_and_outputs(checkout, *config, path=no_heavy_imports)
    assert notes(outputs) == {CLIP: "download_clip", CAPTIONER: "download_captioner"}
    assert set(inputs) >= LOADS_CLIP | LOADS_CAPTIONER
    del inputs["list_training_images"]  # which reads the notes of all models of a training
    for rule, files in inputs.items():
        assert (CLIP in files) == (rule in LOADS_CLIP), rule
        assert (CAPTIONER in files) == (rule in LOADS_CAPTIONER), rule


# --- captions are not asked twice ----------------------------------------------------------------


def logged(checkout, name):
    return (checkout.root / RESULTS / "logs" / f"{name}.log").read_text()


def test_captions_that_were_removed_are_made_again_without_an_engine(edited):
    tables_before = {
        kind: (edited.root / RESULTS / f"captions/{kind}.parquet").read_bytes()
        for kind in ("images", "groups")
    }
    for kind in tables_before:
        (edited.root / RESULTS / f"captions/{kind}.parquet").unlink()
    targets = [f"{RESULTS}/captions/{kind}.parquet" for kind in tables_before]
    run = edited.snakemake(*targets, "--config", "seeds=1")
    assert run.returncode == 0, run.stdout
    for kind, before in tables_before.items():
        assert "Asked 0 requests" in logged(edited, f"caption_{kind}")
        assert "started" not in logged(edited, f"caption_{kind}")
        assert (edited.root / RESULTS / f"captions/{kind}.parquet").read_bytes() == before
    assert planned(edited) == {}  # the same bytes rerun nothing


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_that_ctrl_c_stops_continues_with_the_next_run(finished_copy):
    """Ctrl-C is SIGINT to all processes of a terminal."""
    folder = finished_copy.root / RESULTS / "latteclip/seed0"
    command = ["-j1", folder.relative_to(finished_copy.root) / "history.parquet"]
    command += ["--config", "seeds=1", "compute={'checkpoint_minutes': 0}"]
    command += ["finetune={'epochs': 20}"]  # of three steps
    options = {"start_new_session": True, "preexec_fn": hear_interrupts}
    run = finished_copy.start("snakemake", *command, **options)
    while not [*folder.glob("checkpoint/step-*.pt")] and run.poll() is None:
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate()
    assert run.returncode != 0, output
    saved = int(
        re.search(r"Step (\d+) is saved", (folder / "logs/finetune.log").read_text())[1]
    )
    [checkpoint] = folder.glob("checkpoint/*")
    assert checkpoint.name.startswith(f"step-{saved:08d}-")
    run = finished_copy.snakemake(*command)
    assert run.returncode == 0, run.stdout
    assert f"Resuming after step {saved}," in (folder / "logs/finetune.log").read_text()
    assert pq.read_table(folder / "history.parquet")["step"].to_pylist() == list(range(60))
    assert not (folder / "checkpoint").exists()


# --- labels do not leak --------------------------------------------------------------------------


def learned(checkout):
    """The bytes of labels, captions and weights, and the history without its timings."""
    results = checkout.root / RESULTS
    names = (
        "*labels.parquet",
        "captions/*s.parquet",
        "unknown.parquet",
        "**/*.safetensors",
    )
    files = [path for name in names for path in results.glob(name)]
    history = parquet(checkout, "latteclip/seed0/history.parquet")
    del history["images_per_second"], history["data_wait"]
    return {path.relative_to(results): path.read_bytes() for path in files}, history


def test_a_run_prints_a_line_for_each_long_stage_and_logs_hold_the_rest(finished_copy):
    shutil.rmtree(finished_copy.root / RESULTS)
    run = finished_copy.snakemake("--config", "seeds=1", "method=zero_shot,flyp")
    assert run.returncode == 0, run.stdout
    lines = [line for line in run.stdout.splitlines() if line]
    assert len(lines) < 20, run.stdout
    stages = re.findall(r"^[\d:]{8}  (\w+) of demo \(\d+ of \d+ jobs", run.stdout, re.M)
    assert {"images", "features", "training", "page"} <= set(stages)
    assert len(stages) == len(set(stages))
    [named] = re.findall(r"\.snakemake/log/\S+\.log", run.stdout)
    assert "rule finetune:" in (finished_copy.root / named).read_text()
    [trained] = (finished_copy.root / RESULTS).glob("flyp/seed0/logs/finetune.log")
    assert trained.read_text().splitlines()[-1] not in run.stdout
    everything = finished_copy.snakemake(
        "--config",
        "seeds=1",
        "method=zero_shot,flyp",
        "--forcerun",
        "summarize",
        "--verbose",
    )
    assert "rule summarize:" in everything.stdout


def test_training_labels_change_no_byte_of_labels_captions_and_weights(finished_copy):
    before = learned(finished_copy)
    assert len(before[0]) >= 9
    index = finished_copy.root / RESULTS / "images.parquet"
    table = tables.read(index, tables.IMAGES)
    metadata = tables.read_metadata(index, IndexMetadata)
    columns = table.to_pydict()
    for name in ("label", "classname"):
        pairs = zip(columns[name], columns["split"], strict=True)
        columns[name] = [value if split == "test" else None for value, split in pairs]
    tables.write(index, columns, tables.IMAGES, metadata)
    targets = ("latteclip/seed0/model", "unknown.parquet", "fused_labels.parquet")
    run = finished_copy.snakemake(
        *(f"{RESULTS}/{name}" for name in targets), "--config", "seeds=1"
    )
    assert run.returncode == 0, run.stdout
    ran = set(re.findall(r"^localrule (\w+):", finished_copy.log(), re.MULTILINE))
    assert ran >= {"pseudo_label_images", *LOADS_CAPTIONER, "fuse_labels", "finetune"}
    assert learned(finished_copy) == before


# --- a folder of images --------------------------------------------------------------------------


def mine(checkout, folder, **changes):
    """Configuration file of a dataset `mine` in a folder of class folders."""
    dataset = {
        "source": {"folder": str(folder)},
        "split": {"kind": "folders"},
        "template": "a photo of a {}.",
        "prompts": {"image": "What?", "group": "What?"},
        "clip": {"model": "local-dir:latteclip/demo/models/clip", "pretrained": None},
        **changes,
    }
    path = checkout.root / "mine.yaml"
    path.write_text(yaml.safe_dump({"dataset": "mine", "datasets": {"mine": dataset}}))
    return ["--configfile", str(path)]


@pytest.fixture
def no_heavy_imports(tmp_path):
    """A folder that makes the import of torch, vllm or open_clip fail."""
    folder = tmp_path / "no_heavy_imports"
    for name in ("torch", "vllm", "transformers", "open_clip", "torchvision"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(
            f"raise ImportError('heavy import of {name}')\n"
        )
    installed = Path(find_spec("open_clip").origin).parent
    for name in ("model_configs", "pretrained.py"):  # read as files
        (folder / "open_clip" / name).symlink_to(installed / name)
    return [folder]


def times(checkout):
    """The times of all results and resources."""
    folders = (checkout.root / name for name in ("results", "resources"))
    return {path: path.lstat().st_mtime_ns for each in folders for path in each.rglob("*")}


def test_a_folder_reruns_what_reads_a_change_and_a_dry_run_writes_nothing(
    checkout, tmp_path
):
    folder = class_folders(tmp_path / "pictures", n=6)
    asked = ("results/mine/duplicates.parquet", *mine(checkout, folder))
    run = checkout.snakemake(*asked)
    assert run.returncode == 0, run.stdout
    (folder / ".DS_Store").write_text("left by a file manager")
    (folder / ".DS_Store").unlink()
    (folder / "Thumbs.db").write_text("left by another")
    files = sorted(folder.rglob("*.png"))
    assert "Nothing to be done" in checkout.snakemake("--dry-run", *asked).stdout
    os.utime(files[0])
    before = times(checkout)
    assert "rule index_images:" in checkout.snakemake("--dry-run", *asked).stdout
    assert times(checkout) == before


def test_a_folder_that_moved_reruns_nothing_and_is_read_where_it_is(checkout, tmp_path):
    folder = class_folders(tmp_path / "pictures", n=6)
    features = "results/mine/pseudo_labels.parquet"
    target = "results/mine/duplicates.parquet"
    run = checkout.snakemake(target, features, *mine(checkout, folder))
    assert run.returncode == 0, run.stdout
    moved = folder.rename(tmp_path / "moved")
    run = checkout.snakemake(target, features, *mine(checkout, moved))
    assert "Nothing to be done" in run.stdout
    index = pq.read_table(checkout.root / "results/mine/images.parquet")["path"].to_pylist()
    assert all((checkout.root / path).is_file() for path in index)
    (checkout.root / features).unlink()
    run = checkout.snakemake(target, features, *mine(checkout, moved))
    assert run.returncode == 0, run.stdout


def test_a_dry_run_in_another_folder_leaves_the_images_where_they_are(checkout, tmp_path):
    folder = class_folders(tmp_path / "pictures", n=6)
    target = "results/mine/images.parquet"
    assert checkout.snakemake(target, *mine(checkout, folder)).returncode == 0
    other = class_folders(tmp_path / "other", n=7)
    planned = checkout.snakemake("--dry-run", target, *mine(checkout, other)).stdout
    assert "rule index_images:" in planned
    link = checkout.root / "resources" / "mine" / "folder"
    assert link.resolve() == folder
    assert checkout.snakemake(target, *mine(checkout, other)).returncode == 0
    assert link.resolve() == other


@pytest.mark.slow
def test_few_new_images_are_labelled_by_the_trained_model_until_a_user_asks(
    checkout, tmp_path
):
    folder = tmp_path / "pictures"
    files = write_pictures(folder, 42)
    (folder / "classes.txt").write_text("red dots\nlines\n")
    added = [shutil.move(files[i], tmp_path / f"{i}.png") for i in (0, 1)]
    finetune = {"epochs": 1, "batch_size": 20, "warmup_steps": 1}
    given = [*mine(checkout, folder, finetune=finetune)]
    given += ["--config", "method=zero_shot,flyp", "seeds=1"]
    results = checkout.root / "results" / "mine"
    weights = results / "flyp" / "seed0" / "model" / "open_clip_model.safetensors"

    def ran(*more):
        run = checkout.snakemake(*given, *more)
        assert run.returncode == 0, run.stdout
        predictions = pq.read_table(results / "flyp" / "seed0" / "predictions.parquet")
        assert len(predictions) == len(list(folder.glob("*.png")))
        return run.stdout, weights.stat().st_mtime_ns

    _, first = ran()
    for file in added:
        shutil.move(file, folder)
    output, second = ran()
    assert second == first
    assert "flyp was trained on 40 of 42 images" in output
    metrics = json.loads((results / "flyp" / "seed0" / "metrics.json").read_text())
    assert "earlier" in metrics["flags"]
    assert "40 of 42 images" in checkout.latteclip("status").stdout
    assert "Nothing to be done" in checkout.snakemake("--dry-run", *given).stdout
    output, third = ran("retrain=true")
    assert third > second
    assert "was trained on" not in output
    assert "Nothing to be done" in checkout.snakemake("--dry-run", *given).stdout


def test_a_folder_without_labels_is_used_whole(checkout, tmp_path):
    folder = tmp_path / "pictures"
    files = write_pictures(folder, 12)
    shutil.copy(files[3], folder / "copy.png")
    (folder / "film.mov").write_text("no image")
    (folder / "classes.txt").write_text("red dots\nlines\n")
    methods = "method=zero_shot,zero_shot_adapted"
    run = checkout.snakemake(*mine(checkout, folder), "--config", methods)
    assert run.returncode == 0, run.stdout
    results = checkout.root / "results" / "mine"
    names = sorted([*(os.path.basename(file) for file in files), "copy.png"])
    for method in ("zero_shot", "zero_shot_adapted"):
        found = pq.read_table(
            results / method / "seed0" / "predictions.parquet"
        ).to_pydict()
        assert found["image_id"] == names and found["label"] == [None] * 13
        found = json.loads((results / method / "seed0" / "metrics.json").read_text())
        assert found["acc1"] is None and found["images"] == 13
    twins = pq.read_table(results / "duplicates.parquet").to_pylist()
    assert ("003.png", "copy.png") in {
        (row["image_id"], row["duplicate_id"]) for row in twins
    }
    assert (results / "report.html").is_file()
