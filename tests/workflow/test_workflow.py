import json
import os
import re
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from open_clip import create_model_and_transforms
from PIL import Image
from support.checkout import DEMO, N_TEST, N_TRAIN, edit, hear_interrupts, shrink
from support.class_folders import class_folders
from support.tiny import write_index, write_pictures

from latteclip.captions import answers
from latteclip.cli import main
from latteclip.config import layers
from latteclip.config.configuration import Configuration
from latteclip.core import tables
from latteclip.demo import textures

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
    train = [i for i, s in zip(index["image_id"], index["split"], strict=True) if s != "test"]
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


def test_groups_share_the_pseudo_label_of_their_row(finished):
    labels = parquet(finished, "pseudo_labels.parquet")
    label_of = dict(zip(labels["image_id"], labels["pseudo_label"], strict=True))
    groups = parquet(finished, "captions/groups.parquet")
    for members, label in zip(groups["members"], groups["pseudo_label"], strict=True):
        assert {label_of[member] for member in members} == {label}


def test_tuned_models_are_stock_open_clip_folders(finished):
    for method in ("flyp", "latteclip"):
        folder = finished.root / RESULTS / method / "seed0" / "model"
        model, _, _ = create_model_and_transforms(f"local-dir:{folder}")
        assert torch.isfinite(model.encode_image(torch.zeros(1, 3, 64, 64))).all()
        assert (folder / "prototypes.safetensors").is_file()


def test_the_model_that_was_chosen_is_there_to_predict(finished):
    """Of so few images none is left out to judge, and zero-shot is the safest."""
    told = json.loads((finished.root / RESULTS / "selection.json").read_text())
    assert (told["method"], told["seed"]) == ("zero_shot", 0)
    assert "No image was left out" in told["reason"]
    assert {row["acc1"] is None for row in told["candidates"]} == {False}
    picture = next((finished.root / "resources" / "demo" / "data").rglob("*.png"))
    run = finished.run("latteclip", "predict", RESULTS, picture)
    assert run.returncode == 0, run.stdout
    own = finished.run("latteclip", "predict", f"{RESULTS}/zero_shot/seed0/model", picture)
    assert own.stdout == run.stdout
    run = finished.run("latteclip", "export", RESULTS, "exported", "--format", "open_clip")
    assert run.returncode == 0, run.stdout
    assert told["reason"] in (finished.root / "exported" / "README.md").read_text()


def test_a_table_of_its_own_has_a_choice_of_its_own(finished):
    inputs, outputs = inputs_and_outputs(finished, "table={'name': 'other'}")
    assert outputs[f"{RESULTS}/selection-other.json"] == "select_model"
    assert outputs[f"{RESULTS}/model-other"] == "select_model"
    assert f"{RESULTS}/selection-other.json" in inputs["summarize"]
    assert f"{RESULTS}/selection.json" not in inputs["report_dataset"]


def test_every_job_leaves_a_log(finished):
    logs = {path.name for path in (finished.root / "results").rglob("*.log")}
    assert logs >= {
        "generate_textures.log",
        "index_images.log",
        "find_duplicates.log",
        "pseudo_label_images.log",
        "caption_images.log",
        "caption_groups.log",
        "finetune.log",
        "evaluate.log",
        "evaluate_zero_shot.log",
        "select_model.log",
        "summarize.log",
        "report_dataset.log",
        "index_results.log",
    }


def test_a_run_ends_with_its_pages(finished):
    page = (finished.root / RESULTS / "report.html").read_text()
    chosen = json.loads((finished.root / RESULTS / "selection.json").read_text())
    run = f"{chosen['method']}/seed{chosen['seed']}"
    metrics = json.loads((finished.root / RESULTS / run / "metrics.json").read_text())
    assert f"<strong>{100 * metrics['acc1']:.1f}&nbsp;%</strong>" in page
    assert 'href="demo/report.html"' in (finished.root / "results" / "index.html").read_text()


def test_a_run_ends_with_where_the_results_are(finished):
    (finished.root / "results" / "index.html").unlink()
    run = finished.snakemake("--config", "seeds=1")
    assert run.returncode == 0, run.stdout
    begun, ended = run.stdout.index("demo: 100 images of "), run.stdout.rindex("demo: 100 images")
    assert begun < run.stdout.index("rule index_results:") < run.stdout.index("Elapsed time")
    assert run.stdout.index("Elapsed time") < ended
    assert "results/demo/report.html" in run.stdout[ended:]
    assert "latteclip predict results/demo" in run.stdout[ended:]


def test_nothing_is_left_half_written(finished):
    assert [p for p in (finished.root / "results").rglob("*") if p.name.endswith(".tmp")] == []


def test_a_second_run_has_nothing_to_do(finished):
    run = finished.snakemake("--config", "seeds=1")
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout


# --- reruns: what was edited, and the jobs that a dry run then wants -----------------------------

PAGES = {"summarize": 1, "report_dataset": 1, "index_results": 1}
COLLECTED = {"select_model": 1, **PAGES}
TUNED = {"finetune": 2, "evaluate": 2, **COLLECTED}  # flyp and latteclip
TUNED_ON_CAPTIONS = {"finetune": 1, "evaluate": 1, **COLLECTED}  # latteclip
NEW_GROUPS = {"summarize_captions": 1, **TUNED_ON_CAPTIONS}
NEW_CAPTIONS = {"label_by_captions": 1, **NEW_GROUPS}


def in_demo(*keys, value):
    def change(checkout):
        def set_value(content):
            section = content["datasets"]["demo"]
            for key in keys[:-1]:
                section = section[key]
            section[keys[-1]] = value

        edit(checkout, DEMO, set_value)

    return change


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
    (folder / "answers.jsonl").write_text('{"plan": "0"}\n')


NEW_CLIP = {
    **{"pseudo_label_images": 1, "caption_groups": 1, "summarize_captions": 1},
    **{"evaluate_zero_shot": 1, "assemble_model": 1, "label_by_captions": 1, **TUNED},
    "score_unknown": 1,
}

EDITS = {
    "an audit": (answered, {"score_audit": 1, **COLLECTED}),  # no training learns from it
    "learning rate": (in_demo("finetune", "lr", value=1e-4), TUNED),
    "a switch of latteclip": (
        in_demo("methods", "latteclip", "switches", "alpha", value=0.2),
        TUNED_ON_CAPTIONS,
    ),
    "image prompt": (
        in_demo("prompts", "image", value="What is this?"),
        {"caption_images": 1, **NEW_CAPTIONS},
    ),
    "group prompt": (
        in_demo("prompts", "group", value="What are these?"),
        {"caption_groups": 1, **NEW_GROUPS},
    ),
    "captioner's model": (
        in_demo("captioner", "model", value="another/model"),
        {
            **{"download_captioner": 1, "caption_images": 1, "caption_groups": 1},
            **NEW_CAPTIONS,
        },
    ),
    "layout of the groups": (
        in_demo("groups", "gap", value=6),
        {"caption_groups": 1, **NEW_GROUPS},
    ),
    "template": (in_demo("template", value="{} texture."), NEW_CLIP),
    "losses.py": (in_file("latteclip/train/objectives/losses.py"), TUNED),
    "mixer.py, of one objective": (
        in_file("latteclip/train/objectives/mixer.py"),
        TUNED_ON_CAPTIONS,
    ),
    "an engine in use": (
        in_file("latteclip/captions/engines/transformers.py"),
        {"caption_images": 1, "caption_groups": 1, **NEW_CAPTIONS},
    ),
    "another engine": (in_file("latteclip/captions/engines/vllm.py"), {}),
    "files.py": (in_file("latteclip/core/files.py"), {}),
    "caption.py": (
        in_file("latteclip/captions/caption.py"),
        {"caption_images": 1, "caption_groups": 1, **NEW_CAPTIONS},
    ),
    "clean.py": (
        in_file("latteclip/captions/clean.py"),
        {"caption_images": 1, "caption_groups": 1, **NEW_CAPTIONS},
    ),
    "summarize_captions.py": (
        in_file("latteclip/captions/summarize_captions.py"),
        {"summarize_captions": 1, "report_dataset": 1},
    ),
    "mentions.py": (
        in_file("latteclip/captions/mentions.py"),
        {"summarize_captions": 1, "report_dataset": 1},
    ),
    "clip_config.py": (in_file("latteclip/data/clip_config.py"), NEW_CLIP),
    "show.py": (in_file("latteclip/captions/show.py"), {}),
    "shard.py, with one shard": (
        in_file("latteclip/captions/shard.py"),
        {"caption_images": 1, "caption_groups": 1, **NEW_CAPTIONS},
    ),
    "two shards": (
        in_demo("captions", value={"shards": 2}),
        {
            **{"caption_images_shard": 2, "caption_groups_shard": 2, "gather_captions": 2},
            **NEW_CAPTIONS,
        },
    ),
    "evaluate.py": (
        in_file("latteclip/evaluate/evaluate.py"),
        {"evaluate": 2, **COLLECTED},
    ),
    "evaluate_zero_shot.py": (
        in_file("latteclip/evaluate/evaluate_zero_shot.py"),
        {"evaluate_zero_shot": 1, **COLLECTED},
    ),
    "gallery_images.py": (
        in_file("latteclip/evaluate/gallery_images.py"),
        {"evaluate": 2, **COLLECTED},
    ),
    "metrics.py": (
        in_file("latteclip/evaluate/metrics.py"),
        {"evaluate": 2, "evaluate_zero_shot": 1, **COLLECTED},
    ),
    "results.py": (in_file("latteclip/evaluate/results.py"), COLLECTED),
    "summarize.py": (in_file("latteclip/evaluate/summarize.py"), {"summarize": 1}),
    "summary.py": (in_file("latteclip/evaluate/summary.py"), PAGES),
    "selection.py": (in_file("latteclip/evaluate/selection.py"), COLLECTED),
    "share of images that are left out": (
        in_demo("selection", value={"share": 0.2}),
        TUNED,
    ),
    "no image is left out": (
        in_demo("selection", value={"share": 0}),
        {"finetune": 2, "evaluate": 2, **PAGES},
    ),
    "find_duplicates.py": (
        in_file("latteclip/data/find_duplicates.py"),
        {"find_duplicates": 1, "report_dataset": 1},
    ),
    "share of images that are called unknown": (
        in_demo("unknown", value={"share": 0.1}),
        {"score_unknown": 1, "report_dataset": 1},
    ),
    "a module of the pages": (in_file("latteclip/report/figures.py"), {"report_dataset": 1}),
    "a template of the pages": (
        in_file("latteclip/report/templates/page.css"),
        {"report_dataset": 1, "index_results": 1},
    ),
    "the dataset's licence": (in_demo("licence", value="none"), {"report_dataset": 1}),
    "download_models.py": (in_file("latteclip/data/download_models.py"), {}),
    "main.py": (in_file("latteclip/cli/main.py"), {}),
    "progress.py": (in_file("latteclip/core/progress.py"), {}),
    "gpus.py": (in_file("latteclip/core/gpus.py"), {}),
    "an `__init__.py`": (in_file("latteclip/train/__init__.py"), {}),
    "the engine that runs": (
        in_file("latteclip/captions/engines/transformers.py"),
        {"caption_images": 1, "caption_groups": 1, **NEW_CAPTIONS},
    ),
    "README.md": (in_file("README.md"), {}),
    "time of losses.py": (touched("latteclip/train/objectives/losses.py"), {}),
}


@pytest.fixture
def edited(finished):
    """The finished checkout, whose code and configuration come back after the test."""
    kept = {
        path: (path.read_bytes(), path.stat())
        for name in ("latteclip", "config", "README.md")
        for path in [finished.root / name, *(finished.root / name).rglob("*")]
        if path.is_file() and path.suffix in (".py", ".yaml", ".md", ".css")
    }
    yield finished
    for path, (content, stat) in kept.items():
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    shutil.rmtree(finished.root / RESULTS / "audit", ignore_errors=True)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_what_depends_on_it_and_nothing_else(edited, name):
    change, wanted = EDITS[name]
    change(edited)
    assert planned(edited) == wanted


@pytest.mark.parametrize(
    ("config", "votes"),
    [([], "caption_images"), (["scores={'kind': 'likelihood'}"], "score_classes")],
)
def test_the_target_labels_stops_at_labels_and_a_classifier(checkout, config, votes):
    """Whatever the methods read: zero-shot asks for no captions."""
    given = ["dataset=demo", "method=zero_shot", *config]
    run = checkout.snakemake("labels", "--dry-run", "--config", *given)
    assert run.returncode == 0, run.stdout
    jobs = set(re.findall(r"^(?:local)?rule (\w+):", run.stdout, re.MULTILINE))
    assert jobs == {
        *("generate_textures", "index_images", "pseudo_label_images", votes),
        *("label_by_captions", "score_unknown", "assemble_model", "labels"),
    }


def test_an_added_seed_gives_the_others_other_images_to_leave_out(finished):
    assert planned(finished, "seeds=2") == {"finetune": 4, "evaluate": 4, **COLLECTED}


def test_an_added_method_runs_alone(finished):
    assert planned(finished, "method=zero_shot,flyp,latteclip,latteclip_no_captions") == {
        "finetune": 1,
        "evaluate": 1,
        **COLLECTED,
    }


def test_an_image_that_is_not_used_reruns_nothing(finished):
    assert planned(finished, "container=some.sif") == {}


def test_a_deleted_result_is_made_again_though_the_table_stands(finished):
    metrics = finished.root / "results/demo/flyp/seed0/metrics.json"
    aside = metrics.rename(metrics.with_suffix(".aside"))
    try:
        assert planned(finished) == {"evaluate": 1, **COLLECTED}
    finally:
        aside.rename(metrics)


def test_the_added_seed_s_option_did_not_change_the_checkout(finished):
    assert planned(finished) == {}


# --- models of the hub are fetched by jobs of their own ------------------------------------------

CLIP = "resources/models/ViT-B-32@laion2b_s34b_b79k.json"
CAPTIONER = "resources/models/llava-hf--llava-v1.6-mistral-7b-hf.json"
LOADS_CLIP = {"pseudo_label_images", "finetune", "label_by_captions", "assemble_model"}
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
    return {file: rule for file, rule in outputs.items() if file.startswith("resources/models/")}


def test_each_model_is_fetched_once_and_before_the_stages_that_load_it(checkout, no_heavy_imports):
    config = ["dataset=dtd,eurosat", "method=zero_shot,latteclip,flyp_fused"]
    inputs, outputs = inputs_and_outputs(checkout, *config, path=no_heavy_imports)
    assert notes(outputs) == {CLIP: "download_clip", CAPTIONER: "download_captioner"}
    assert set(inputs) >= LOADS_CLIP | LOADS_CAPTIONER
    for rule, files in inputs.items():
        assert (CLIP in files) == (rule in LOADS_CLIP), rule
        assert (CAPTIONER in files) == (rule in LOADS_CAPTIONER), rule


def test_shards_of_captions_load_the_captioner_too(checkout):
    inputs, _ = inputs_and_outputs(checkout, "dataset=dtd", "captions={'shards': 2}")
    for rule in LOADS_CAPTIONER:
        assert CAPTIONER in inputs[f"{rule}_shard"]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (["dataset=demo"], []),
        (["dataset=dtd", "captioner={'engine': 'openai'}"], [CLIP]),
        (["dataset=dtd", "clip={'pretrained': 'weights/mine.pt'}"], [CAPTIONER]),
        (
            ["dataset=dtd", "clip={'model': 'hf-hub:me/clip'}", "captioner={'revision': 'v2'}"],
            ["resources/models/hf-hub--me--clip.json", CAPTIONER.replace(".json", "@v2.json")],
        ),
    ],
    ids=str,
)
def test_only_models_of_the_hub_are_fetched(checkout, config, wanted, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    (checkout.root / "weights").mkdir(exist_ok=True)
    (checkout.root / "weights" / "mine.pt").touch()
    inputs, outputs = inputs_and_outputs(checkout, *config)
    assert sorted(notes(outputs)) == sorted(wanted)
    assert {f for files in inputs.values() for f in files if "models/" in f} == set(wanted)


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


def test_shards_write_the_same_captions_and_ask_nothing_anew(edited):
    before = {kind: parquet(edited, f"captions/{kind}.parquet") for kind in ("images", "groups")}
    kept = {path: path.read_bytes() for path in (edited.root / RESULTS / "captions").iterdir()}
    EDITS["two shards"][0](edited)
    targets = [f"{RESULTS}/captions/{kind}.parquet" for kind in before]
    run = edited.snakemake(*targets, "--config", "seeds=1")
    assert run.returncode == 0, run.stdout
    for kind, columns in before.items():
        assert parquet(edited, f"captions/{kind}.parquet") == columns
        for shard in ("1-of-2", "2-of-2"):
            assert "Asked 0 requests" in logged(edited, f"caption_{kind}-{shard}")
    assert not list((edited.root / RESULTS / "captions").rglob("*-of-2.parquet"))
    for path, content in kept.items():
        path.write_bytes(content)


def test_the_summary_of_the_captions_covers_both_kinds(finished):
    summary = json.loads((finished.root / RESULTS / "captions/summary.json").read_text())
    assert {kind: values["captions"] for kind, values in summary.items()} == {
        "images": N_TRAIN,
        "groups": N_TRAIN,
    }


def test_captions_are_shown_with_class_and_prompt(finished):
    run = finished.run("latteclip", "captions", "show", f"{RESULTS}/captions/groups.parquet")
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("(pseudo-label)") == 5
    assert "Describe the common visual attributes" in run.stdout


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_that_is_ended_through_snakemake_goes_on_with_the_next_run(
    finished, new_checkout
):
    """SIGTERM to all processes of a job is what SLURM sends; SIGINT to all is Ctrl-C."""
    checkout = new_checkout("signalled")
    shutil.copytree(finished.root, checkout.root, dirs_exist_ok=True)
    in_demo("finetune", "epochs", value=20)(checkout)  # of three steps
    folder = checkout.root / RESULTS / "latteclip/seed0"
    command = ["snakemake", "-j1", folder.relative_to(checkout.root) / "history.parquet"]
    command += ["--config", "seeds=1", "compute={'checkpoint_minutes': 0}"]
    kept = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        before = set(folder.glob("checkpoint/step-*"))
        run = checkout.start(*command, start_new_session=True, preexec_fn=hear_interrupts)
        while not set(folder.glob("checkpoint/step-*")) - before and run.poll() is None:
            time.sleep(0.005)
        os.killpg(run.pid, number)
        output, _ = run.communicate()
        assert run.returncode != 0, output
        log = (folder / "logs/finetune.log").read_text()
        if kept:
            assert f"Going on after step {kept}," in log
        kept = int(re.search(r"Step (\d+) is kept", log)[1])
        assert (folder / "checkpoint" / f"step-{kept:08d}").is_dir()
        assert not (folder / "model").exists()
        assert not (folder / "history.parquet").exists()
    run = checkout.run(*command)
    assert run.returncode == 0, run.stdout
    assert f"Going on after step {kept}," in (folder / "logs/finetune.log").read_text()
    assert pq.read_table(folder / "history.parquet")["step"].to_pylist() == list(range(60))
    assert not (folder / "checkpoint").exists()


# --- labels do not leak --------------------------------------------------------------------------


@pytest.fixture
def configuration():
    """The repository's configuration."""
    return Configuration(layers.defaults(project=None), {})


def run_training_stages(folder, index, configuration):
    """Labels by CLIP and by captions, captions and LatteCLIP by the commands; all that is written.

    By the names of the files; of the history without its timings.
    """
    folder.mkdir()
    template = {"template": configuration.dataset("demo")["template"]}
    clip = {**configuration.section("clip", "demo"), **template}
    captioner = configuration.section("captioner", "demo")
    captioner |= {"engine": "transformers", "max_new_tokens": 8}
    labels = folder / "pseudo_labels.parquet"
    clip_settings = {**clip, "batch_size": 8, "topk": 5}
    method = configuration.method("latteclip", "demo")
    small = {"epochs": 2, "batch_size": 6, "warmup_steps": 1}
    finetune_settings = {
        **clip,
        "objective": method["objective"],
        "pseudo_labels": "fused",
        "prototypes": "image",
        "head": "remade",
        "switches": method.get("switches", {}),
        "finetune": {**method["finetune"], **small},
    }
    commands = [
        (
            "pseudo-label-images",
            {
                "settings": clip_settings,
                "output": labels,
                "class-embeddings": folder / "class_embeddings.safetensors",
            },
        ),
        (
            "caption-images",
            {"prompt": "What?", "captioner": captioner, "output": folder / "images.parquet"},
        ),
        (
            "caption-groups",
            {
                "pseudo-labels": labels,
                "prompt": "What?",
                "groups": {"seed": 0, "canvas": 128, "gap": 4},
                "captioner": captioner,
                "output": folder / "groups.parquet",
            },
        ),
        (
            "calibrate-zero-shot",
            {
                "pseudo-labels": labels,
                "class-embeddings": folder / "class_embeddings.safetensors",
                "output": folder / "calibrated.safetensors",
                "prototypes": folder / "by_zero_shot.safetensors",
            },
        ),
        (
            "label-by-captions",
            {
                "pseudo-labels": labels,
                "class-embeddings": folder / "class_embeddings.safetensors",
                "image-captions": folder / "images.parquet",
                "settings": {**configuration.section("clip", "demo"), "batch_size": 8},
                "output": folder / "caption_labels.parquet",
                "prototypes": folder / "image_prototypes.safetensors",
            },
        ),
        (
            "finetune",
            {
                "pseudo-labels": labels,
                "caption-labels": folder / "caption_labels.parquet",
                "image-prototypes": folder / "image_prototypes.safetensors",
                "image-captions": folder / "images.parquet",
                "group-captions": folder / "groups.parquet",
                "settings": finetune_settings,
                "seed": 0,
                "model": folder / "model",
                "history": folder / "history.parquet",
                "checkpoint": folder / "checkpoint",
            },
        ),
    ]
    for command, options in commands:
        arguments = [command, "--images", index]
        if command != "calibrate-zero-shot":
            arguments += ["--threads", "1"]
        for name, value in options.items():
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            arguments += [f"--{name}", text]
        assert main.main(arguments) == 0
    written = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    history = pq.read_table(folder / "history.parquet")
    written["history.parquet"] = history.drop_columns(["images_per_second", "data_wait"])
    return written


def test_training_labels_change_no_byte_of_labels_captions_and_weights(
    tmp_path, configuration, monkeypatch
):
    monkeypatch.setattr(answers, "today", lambda: "2026-02-03")  # a run may cross midnight
    files = write_pictures(tmp_path / "pictures", 16, size=(64, 64))
    splits = ["train"] * 11 + ["val"] + ["test"] * 4
    names = list(textures.CLASSNAMES[:3])
    right = [i % 3 for i in range(16)]
    indices = {
        "with": right,
        "without": [None] * 12 + right[12:],
        "wrong": [(label + 1) % 3 for label in right],
    }
    written = {}
    for kind, labels in indices.items():
        index = write_index(tmp_path / f"{kind}.parquet", files, splits, labels, names)
        written[kind] = run_training_stages(tmp_path / kind, index, configuration)
    assert len(written["with"]) >= 12
    assert written["with"] == written["without"] == written["wrong"]


# --- mistakes: one sentence, a status, and nothing written ---------------------------------------


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


def assert_one_sentence(run, message):
    assert run.returncode != 0
    assert len(re.findall(message, run.stdout)) >= 1, run.stdout
    assert "Traceback" not in run.stdout


@pytest.fixture
def no_heavy_imports(tmp_path):
    """A folder that makes the import of torch, vllm or open_clip fail."""
    folder = tmp_path / "no_heavy_imports"
    for name in ("torch", "vllm", "transformers", "open_clip", "torchvision"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('heavy import of {name}')\n")
    return [folder]


def test_a_dry_run_of_the_demo_imports_nothing_heavy(checkout, no_heavy_imports):
    run = checkout.snakemake("--dry-run", path=no_heavy_imports)
    assert run.returncode == 0, run.stdout
    assert "finetune" in run.stdout


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (["dataset=demmo"], r"Dataset 'demmo' is unknown; did you mean demo\?"),
        (["method=lateclip"], r"Method 'lateclip' is unknown; did you mean latteclip\?"),
        (
            ["finetune={'learning_rate': 0.1, 'epoch': 1}"],
            r"finetune\.(epoch|learning_rate) is unknown",
        ),
        (["sedes=3"], r"Configuration key sedes is unknown; did you mean seeds\?"),
        (["clip={'model': 'local-dir:nowhere'}"], r"names the folder nowhere, which has no"),
    ],
    ids=str,
)
def test_a_mistaken_option_is_one_sentence_before_any_heavy_import(
    checkout, no_heavy_imports, config, message
):
    run = checkout.snakemake("--config", *config, path=no_heavy_imports)
    assert_one_sentence(run, message)
    assert not (checkout.root / "results").exists()


def test_a_missing_source_folder_is_one_sentence_before_any_heavy_import(
    checkout, no_heavy_imports
):
    run = checkout.snakemake(*mine(checkout, "nowhere"), path=no_heavy_imports)
    assert_one_sentence(run, r"Dataset mine: source\.folder nowhere is not a folder")


def spoil_nothing_but_add_an_empty_class(root):
    (root / "hollow").mkdir()


def spoil_an_image(root):
    path = root / "lines" / "002.png"
    path.write_bytes(path.read_bytes()[:200])


def spoil_class_names(root):
    shutil.copytree(root / "lines", root / "Lines")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nothing_but_add_an_empty_class, r"error: .*hollow"),
        (spoil_an_image, r"error: .*cannot be decoded.*002\.png"),
        (spoil_class_names, r"error: Class names 'Lines' and 'lines' are both 'lines'"),
    ],
)
def test_a_bad_folder_is_one_sentence(checkout, tmp_path, spoil, message):
    folder = class_folders(tmp_path / "pictures")
    spoil(folder)
    run = checkout.snakemake("results/mine/images.parquet", *mine(checkout, folder))
    assert_one_sentence(run, message)
    assert not (checkout.root / "results" / "mine" / "images.parquet").exists()


def test_a_missing_captioner_folder_is_one_sentence(checkout, tmp_path):
    files = write_pictures(tmp_path / "pictures", 4)
    (checkout.root / "results" / "mine").mkdir(parents=True)
    index = checkout.root / "results" / "mine" / "images.parquet"
    write_index(index, files, ["train"] * 3 + ["test"], [0, 1, 0, 1], ["a", "b"])
    run = checkout.run(
        "latteclip",
        "caption-images",
        *("--images", index, "--prompt", "What?", "--output", "out.parquet"),
        "--captioner",
        json.dumps(
            {
                "engine": "vllm",
                "model": "./models/nowhere",
                "revision": None,
                "dtype": "auto",
                "max_new_tokens": 8,
                "max_model_len": 256,
                "gpu_memory_utilization": 0.5,
                "batch_size": 8,
            }
        ),
    )
    assert run.returncode == 2
    assert run.stdout.startswith(
        "error: Captioner model folder ./models/nowhere has no config.json"
    )
    assert run.stdout.count("\n") == 1
    assert not (checkout.root / "out.parquet").exists()


def test_a_folder_beside_the_workflow_may_bear_the_name_of_a_module(checkout):
    class_folders(checkout.root / "json")
    run = checkout.snakemake("--dry-run", *mine(checkout, "json"))
    assert run.returncode == 0, run.stdout


def test_class_folders_are_a_dataset_by_configuration_alone(checkout, tmp_path):
    folder = class_folders(tmp_path / "pictures", n=10)
    run = checkout.snakemake("results/mine/pseudo_labels.parquet", *mine(checkout, folder))
    assert run.returncode == 0, run.stdout
    index, metadata = tables.read(
        checkout.root / "results" / "mine" / "images.parquet", tables.IMAGES
    )
    assert metadata["classnames"] == ["lines", "red dots"]
    assert len(index) == 20
    assert Image.open(checkout.root / index["path"][0].as_py()).size == (64, 64)


def class_folders_with_a_split(root):
    """Class folders, and a table that says which of their images count."""
    files = sorted(class_folders(root, n=6).rglob("*.png"))
    rows = [f"{file.relative_to(root)},{file.parent.name}" for file in files]
    (root / "split.csv").write_text("\n".join(["path,label", *rows]))


def flat_folder(root):
    write_pictures(root, 12)
    (root / "classes.txt").write_text("red dots\nlines\n")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda root: class_folders(root, n=6), "folders"),
        (flat_folder, "folders"),
        (class_folders_with_a_split, "csv"),
    ],
    ids=["class folders", "flat", "a split of its own"],
)
def test_a_folder_reruns_the_index_where_a_file_changed_and_not_where_one_was_touched(
    checkout, tmp_path, make, kind
):
    folder = tmp_path / "pictures"
    make(folder)
    said = ("results/mine/duplicates.parquet", *mine(checkout, folder, split={"kind": kind}))
    run = checkout.snakemake(*said)
    assert run.returncode == 0, run.stdout
    (folder / ".DS_Store").write_text("left by a file manager")
    (folder / ".DS_Store").unlink()
    (folder / "Thumbs.db").write_text("left by another")
    files = sorted(folder.rglob("*.png"))
    os.utime(files[0])
    assert "Nothing to be done" in checkout.snakemake("--dry-run", *said).stdout
    shutil.copy(files[1], files[0])
    planned = checkout.snakemake("--dry-run", *said).stdout
    assert "rule index_images:" in planned and "rule find_duplicates:" in planned
    run = checkout.snakemake(*said)
    assert run.returncode == 0, run.stdout
    assert "11 of 12 images were decoded before" in run.stdout


def test_a_folder_without_labels_is_used_whole(checkout, tmp_path):
    folder = tmp_path / "pictures"
    files = write_pictures(folder, 12)
    shutil.copy(files[3], folder / "copy.png")
    (folder / "film.mov").write_text("no image")
    (folder / "classes.txt").write_text("red dots\nlines\n")
    methods = "method=zero_shot,label_propagation,zero_shot_calibrated"
    run = checkout.snakemake(*mine(checkout, folder), "--config", methods)
    assert run.returncode == 0, run.stdout
    results = checkout.root / "results" / "mine"
    names = sorted([*(os.path.basename(file) for file in files), "copy.png"])
    for method in ("zero_shot", "label_propagation", "zero_shot_calibrated"):
        said = pq.read_table(results / method / "seed0" / "predictions.parquet").to_pydict()
        assert said["image_id"] == names and said["label"] == [None] * 13
        found = json.loads((results / method / "seed0" / "metrics.json").read_text())
        assert found["acc1"] is None and found["images"] == 13
    twins = pq.read_table(results / "duplicates.parquet").to_pylist()
    assert ("003.png", "copy.png") in {(row["image_id"], row["twin_id"]) for row in twins}
    assert (
        "How often it is right is not known: all images are for training."
        in (results / "report.html").read_text()
    )


# --- on a cluster --------------------------------------------------------------------------------


def asked(checkout, rule, *options):
    """The resources of the first job of a rule, as a dry run with the SLURM profile has them."""
    run = checkout.run("snakemake", "--dry-run", "--workflow-profile", "profiles/slurm", *options)
    assert run.returncode == 0, run.stdout
    _, _, text = run.stdout.partition(f"\nrule {rule}:\n")
    listed = re.search(r"^    resources: (.*)$", text, flags=re.MULTILINE)[1]
    return dict(item.split("=", 1) for item in listed.split(", "))


def test_resources_wait_for_the_index_and_grow_with_it(checkout, tmp_path):
    edit(checkout, DEMO, shrink)
    assert asked(checkout, "finetune")["runtime"] == "<TBD>"
    made = checkout.snakemake("results/demo/images.parquet")
    assert made.returncode == 0, made.stdout
    small = asked(checkout, "finetune")
    long = asked(checkout, "finetune", "--config", "finetune={'epochs': 100000}")
    # 100 images more or less, a hundred thousand times, 200 a second.
    assert int(long["runtime"]) - int(small["runtime"]) == pytest.approx(
        (N_TRAIN + N_TEST) * 100_000 / 200 / 60, abs=1
    )
    assert long["mem_mb"] == small["mem_mb"]


def test_gpu_stages_go_where_gpus_are(checkout, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    config = ("--config", "dataset=dtd", "captioner={'tensor_parallel_size': 2}")
    captions = asked(checkout, "caption_images", *config)
    assert (captions["slurm_partition"], captions["gpu"]) == ("gpu", "2")
    tuned = asked(checkout, "finetune", *config, "processes={'finetune': 4}")
    assert (tuned["slurm_partition"], tuned["gpu"]) == ("gpu", "4")
    index = asked(checkout, "index_images", *config)
    assert (index["slurm_partition"], index.get("gpu")) == ("cpu", None)
    assert int(index["runtime"]) == 15  # a minute for 6,000 images, of which its file speaks
    served = asked(checkout, "caption_images", "--config", "captioner={'engine': 'openai'}")
    assert served["gpu"] == "0"


def test_shards_share_the_time_of_captions(checkout):
    made = checkout.snakemake("results/demo/images.parquet")
    assert made.returncode == 0, made.stdout
    whole = asked(checkout, "caption_images")
    shard = asked(checkout, "caption_images_shard", "--config", "captions={'shards': 10}")
    assert shard["gpu"] == whole["gpu"] == "1"
    assert shard["mem_mb"] == whole["mem_mb"]
    assert 10 * (int(shard["runtime"]) - 20) == pytest.approx(int(whole["runtime"]) - 20, abs=10)
