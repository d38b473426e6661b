"""The workflow on a small run of the demo, and on folders of images."""

import html
import json
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from open_clip import create_model_and_transforms
from support import warm
from support.checkout import N_TEST, N_TRAIN, hear_interrupts, printed, run_printed
from support.image_folders import class_folders, write_textures
from support.tiny import write_pictures

from latteclip.cli import main
from latteclip.core import tables
from latteclip.core.tables import IndexMetadata
from latteclip.core.terminal import WORK

RESULTS = "results/demo"


def jobs_of(output):
    """Return {rule: number of jobs} of what a dry run printed."""
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("total")[0]
    found = dict(re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE))
    return {rule: int(n) for rule, n in found.items() if rule != "all"}


def dry_run(checkout, *config, target=()):
    return checkout.ran(*target, "--dry-run", "--config", "seeds=1", *config)


def planned(checkout, *config):
    return jobs_of(dry_run(checkout, *config))


def parquet(checkout, name):
    return pq.read_table(checkout.root / RESULTS / name).to_pydict()


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_ends_with_the_table_and_every_stage_covers_its_images(finished):
    lines = (finished.root / "results" / "summary.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]]
    methods = ["zero_shot", "flyp", "latteclip"]
    assert [row[:2] for row in rows] == [["demo", method] for method in methods]
    for table in ("images", "groups"):
        asked = f"asked for demo/captions/{table}.parquet"
        [used] = [line for line in lines if asked in line]
        assert re.search(rf"\b{N_TRAIN} questions\b.* tokens", used), used
    index = parquet(finished, "images.parquet")
    pairs = zip(index["image_id"], index["split"], strict=True)
    train = [image_id for image_id, split in pairs if split != "test"]
    assert (len(train), len(index["image_id"])) == (N_TRAIN, N_TRAIN + N_TEST)
    assert parquet(finished, "pseudo_labels.parquet")["image_id"] == index["image_id"]
    assert parquet(finished, "captions/images.parquet")["id"] == train
    groups = parquet(finished, "captions/groups.parquet")
    assert len(groups["id"]) == N_TRAIN
    assert {member for members in groups["members"] for member in members} <= set(train)
    for method in ("zero_shot", "flyp", "latteclip"):
        predictions = parquet(finished, f"{method}/seed0/predictions.parquet")
        assert len(predictions["image_id"]) == N_TEST
        assert not set(predictions["image_id"]) & set(train)


def test_a_run_prints_a_line_for_each_job_and_where_the_results_are(finished):
    output = (finished.root / "run.txt").read_text()
    rules = re.findall(r"^[\d:]{8}  (\w+) \(demo", output, re.MULTILINE)
    assert {"index_images", "finetune", "report_dataset"} <= set(rules)
    assert f"{RESULTS}/report.html" in output and f"latteclip predict {RESULTS}" in output
    logs = (finished.root / ".snakemake/log").glob("*.log")
    assert any("rule finetune:" in log.read_text() for log in logs)
    assert "rule finetune:" not in output
    assert planned(finished) == {}


def test_commands_that_a_run_its_page_and_commands_print_work_as_printed(
    finished_copy, monkeypatch, capfd
):
    root = finished_copy.root
    page = (root / RESULTS / "report.html").read_text("utf-8")
    commands = re.findall(r'<pre class="command"[^>]*><code>([^<]+)', page)
    commands = [*map(html.unescape, commands), *printed((root / "run.txt").read_text())]
    commands += [f"latteclip audit {RESULTS}", "latteclip status demo --estimate"]
    commands += [f"latteclip teach {RESULTS} --offline teach.html"]
    write_textures(root / "new-photos", 1, gap=0.5, seed=0)
    image_id = parquet(finished_copy, "captions/images.parquet")["id"][0]
    answer = {"image": image_id, "answer": "class", "class": "spots"}  # by an older name
    for path in (root / "answers.json", root / RESULTS / "answers.json"):
        path.write_text(json.dumps({"plan": "teach", "answers": [answer]}))
    monkeypatch.chdir(root)
    export = ["labels", "export", RESULTS, "--format", "csv", "--output", "some.csv"]
    assert main.main([*export, "--max-error", "0.05"]) == 2
    commands += printed(capfd.readouterr().err)
    values = {"OLD": "spots", "NEW": "dotted", "FILE": "answers.json"}
    tried = run_printed(finished_copy, commands, monkeypatch, capfd, **values)
    wanted = ["audit results/demo --budget", "teach results/demo --budget", "limit=64"]
    wanted += ["rename-class", "--answers", "labels export"]
    for words in wanted:
        assert any(words in command for command in tried), words


def test_models_are_stock_open_clip_folders_and_the_safest_is_chosen(finished):
    for method in ("flyp", "latteclip"):
        folder = finished.root / RESULTS / method / "seed0" / "model"
        model, _, _ = create_model_and_transforms(f"local-dir:{folder}")
        assert torch.isfinite(model.encode_image(torch.zeros(1, 3, 64, 64))).all()
        assert (folder / "prototypes.safetensors").is_file()
    choice = json.loads((finished.root / RESULTS / "selection.json").read_text())
    assert (choice["method"], choice["seed"]) == ("zero_shot", 0)


def test_a_limited_run_has_results_of_its_own(finished):
    _, outputs = inputs_and_outputs(finished, "limit=8")
    assert outputs["results/summary_8.csv"] == "summarize"
    places = ("results/demo_8/", "results/summary_8.")
    assert all(path.startswith(places) for path in outputs)


def jobs_with_commands(checkout):
    """Inputs, outputs and the command of each job that a run of all jobs has."""
    plan = dry_run(checkout, target=("--forceall", "--printshellcmds"))
    for block in re.split(r"^(?:local)?rule ", plan, flags=re.M)[1:]:
        lines = dict(
            re.findall(r"^(?: {4})?(input|output|Shell command): (.+)$", block, re.M)
        )
        files = [lines.get(key, "").split(", ") for key in ("input", "output")]
        command = shlex.split(lines["Shell command"])
        if command[0] == "latteclip":  # the target has none
            yield *files, command


def test_jobs_read_only_their_inputs_and_shared_folders(finished, tmp_path):
    """Each runs beside links to these alone, and writes what it wrote in the run."""
    jobs = [*jobs_with_commands(finished)]
    assert len(jobs) > 10
    for number, (inputs, outputs, (program, *words)) in enumerate(jobs):
        place = tmp_path / str(number)
        for name in {*filter(None, inputs), "resources", "latteclip"}:
            source, link = finished.root / name, place / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source) if source.is_dir() else os.link(source, link)
        status, output = warm.run(program, words, finished.variables(), place)
        assert status == 0, output
        for name in outputs:
            assert written(place / name) == written(finished.root / name), name


def written(path):
    """The bytes of a result, or of those of a folder, but for times."""
    if path.is_dir():
        return {file.name: written(file) for file in path.iterdir() if file.name[0] != "."}
    content = path.read_bytes()
    if path.suffix == ".html":
        return re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC", b"", content)
    return b"" if path.name == "encoding.json" else content


# --- reruns: what was edited, and the jobs that a dry run then wants -----------------------------

PAGES = {"summarize": 1, "report_dataset": 1}
COLLECTED = {"select_model": 1, **PAGES}
# flyp and latteclip
TUNED = {"finetune": 2, "evaluate": 2, **COLLECTED}
# latteclip
TUNED_ON_CAPTIONS = {"finetune": 1, "evaluate": 1, **COLLECTED}
NEW_CAPTIONS = {"write_votes": 1, "fuse_labels": 1, **TUNED_ON_CAPTIONS}
NEW_CLIP = {
    **{"encode_clip_images": 1, "pseudo_label_images": 1, "score_unknown": 1},
    "adapt_zero_shot": 1,
    **{"evaluate_classifier": 1, "caption_groups": 1, **NEW_CAPTIONS, **TUNED},
}


def in_file(name, added="\n# Edited.\n"):
    """An edit that adds text to a file."""

    def change(checkout):
        with (checkout.root / name).open("a") as file:
            file.write(added)

    return change


def taught(checkout):
    """A person's answers about training images."""
    answers = '{"plan": "teach", "answers": []}'
    (checkout.root / RESULTS / "answers.json").write_text(answers)


def deleted(checkout):
    (checkout.root / RESULTS / "flyp/seed0/metrics.json").unlink()


CODE = "\nEDITED = True\n"
# Which stages import which module is the matter of tests/config/test_jobs.py.
EDITS = {
    "finetune={'lr': 1e-4}": (None, TUNED),
    "prompts={'image': 'What is this?'}": (None, {"caption_images": 1, **NEW_CAPTIONS}),
    # flyp reads no such labels
    "answers that teach": (taught, {"fuse_labels": 1, "score_unknown": 1, **COLLECTED}),
    "an objective": (
        in_file("latteclip/train/objectives/latteclip.py", CODE),
        TUNED_ON_CAPTIONS,
    ),
    "the engine that runs": (
        in_file("latteclip/captions/engines/transformers.py", CODE),
        {"caption_images": 1, "caption_groups": 1, **NEW_CAPTIONS},
    ),
    "a template of the pages": (
        in_file("latteclip/report/templates/page.css"),
        {"report_dataset": 1},
    ),
    "another CLIP in its folder": (
        in_file("latteclip/demo/models/clip/tokenizer_config.json"),
        NEW_CLIP,
    ),
    "a comment": (in_file("latteclip/core/tables.py"), {}),
    "the time of a file": (
        lambda checkout: os.utime(checkout.root / "latteclip/train/objectives/base.py"),
        {},
    ),
    "a result that is gone": (deleted, {"evaluate": 1, **COLLECTED}),
}


@pytest.fixture
def edited(finished):
    """The finished checkout, whose files come back after the test."""
    suffixes = (".py", ".yaml", ".md", ".css", ".json")
    before = {
        path: (path.read_bytes(), path.stat())
        for name in ("latteclip", "config", RESULTS)
        for path in (finished.root / name).rglob("*")
        if path.suffix in suffixes
    }
    yield finished
    for path, (content, stat) in before.items():
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (finished.root / RESULTS / "answers.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_what_depends_on_it_and_nothing_else(edited, name):
    change, wanted = EDITS[name]
    if change is not None:
        change(edited)
    assert planned(edited, *([] if change else [name])) == wanted


def test_what_follows_from_a_failed_job_is_stale_and_the_next_run_repairs_it(finished_copy):
    """Snakemake removes results before their job, and keeps what was made of them."""
    path = finished_copy.root / RESULTS / "class_embeddings.safetensors"
    before, stat = path.read_bytes(), path.stat()
    path.write_bytes(b"damaged")
    failed = finished_copy.snakemake("--config", "seeds=1")
    assert failed.returncode == 1 and "of an earlier run" in failed.stdout
    path.write_bytes(before)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not (path.parent / "classifiers" / "adapted.safetensors").exists()
    for page in (path.parent / "report.html", path.parents[1] / "summary.md"):
        assert re.search("older than its data.*snakemake .*seeds=1", page.read_text())
    stale = {"adapt_zero_shot", "fuse_labels", "select_model", "report_dataset"}
    for target in ((), (f"{RESULTS}/report.html",)):
        assert stale <= set(jobs_of(dry_run(finished_copy, target=target)))
    status = finished_copy.latteclip("status", "demo").stdout
    assert re.search(r"missing +adapt_zero_shot ", status)
    assert re.search(r"stale +report_dataset .*an earlier stage will run", status)


def test_captions_that_were_removed_are_made_again_without_an_engine(finished_copy):
    names = [f"{RESULTS}/captions/{kind}.parquet" for kind in ("images", "groups")]
    before = {name: (finished_copy.root / name).read_bytes() for name in names}
    logs = [
        finished_copy.root / RESULTS / "logs" / f"caption_{Path(name).stem}.log"
        for name in names
    ]
    assert all("started" in log.read_text() for log in logs)
    for name in names:
        (finished_copy.root / name).unlink()
    finished_copy.ran(*names, "--config", "seeds=1")
    for name, log in zip(names, [log.read_text() for log in logs], strict=True):
        assert "Asked 0 questions" in log and "started" not in log
        assert len(WORK.findall(log)) == 1  # as the estimate reads it
        assert (finished_copy.root / name).read_bytes() == before[name]
    assert planned(finished_copy) == {}  # the same bytes rerun nothing


@pytest.mark.slow
def test_a_training_that_ctrl_c_stops_continues_with_the_next_run(finished_copy):
    """Ctrl-C is SIGINT to all processes of a terminal."""
    folder = finished_copy.root / RESULTS / "latteclip/seed0"
    command = ["-j1", folder.relative_to(finished_copy.root) / "history.parquet"]
    command += ["--config", "seeds=1", "compute={'checkpoint_minutes': 0}"]
    command += ["finetune={'epochs': 6}"]  # of three steps
    options = {"start_new_session": True, "preexec_fn": hear_interrupts}
    # The processes of a warm Snakemake are in another group than those that started it.
    words = (warm.interpreter("stages"), "-m", "snakemake", *command)
    run = finished_copy.start(*words, **options)
    while not [*folder.glob("checkpoint/*.pt")] and run.poll() is None:
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate()
    assert run.returncode != 0, output
    log = folder / "logs/finetune.log"
    saved = int(re.search(r"Step (\d+) is saved", log.read_text())[1])
    finished_copy.ran(*command)
    assert f"Resuming after step {saved}," in log.read_text()
    assert pq.read_table(folder / "history.parquet")["step"].to_pylist() == list(range(18))
    assert not (folder / "checkpoint").exists()


# --- labels do not leak --------------------------------------------------------------------------


def learned(checkout):
    """The bytes of labels, captions and weights, and the history."""
    results = checkout.root / RESULTS
    names = (
        "*labels.parquet",
        "captions/*s.parquet",
        "unknown.parquet",
        "**/*.safetensors",
    )
    files = [path for name in names for path in results.glob(name)]
    history = parquet(checkout, "latteclip/seed0/history.parquet")
    return {path.relative_to(results): path.read_bytes() for path in files}, history


def test_training_labels_change_no_byte_of_labels_captions_and_weights(finished_copy):
    before = learned(finished_copy)
    assert len(before[0]) >= 9
    index = finished_copy.root / RESULTS / "images.parquet"
    columns = tables.read(index).to_pydict()
    metadata = tables.read_metadata(index, IndexMetadata)
    for name in ("label", "classname"):
        pairs = zip(columns[name], columns["split"], strict=True)
        columns[name] = [value if split == "test" else None for value, split in pairs]
    tables.write(index, columns, tables.IMAGES, metadata)
    targets = ("latteclip/seed0/model", "unknown.parquet", "fused_labels.parquet")
    finished_copy.ran(*(f"{RESULTS}/{name}" for name in targets), "--config", "seeds=1")
    rules = set(re.findall(r"^localrule (\w+):", finished_copy.log(), re.MULTILINE))
    assert rules >= {"pseudo_label_images", *LOADS_CAPTIONER, "fuse_labels", "finetune"}
    assert learned(finished_copy) == before


# --- plans without a run -------------------------------------------------------------------------

CLIP = "resources/models/ViT-B-32@laion2b_s34b_b79k.json"
CAPTIONER = "resources/models/llava-hf--llava-v1.6-mistral-7b-hf.json"
LOADS_CLIP = {"encode_clip_images", "pseudo_label_images", "finetune", "write_votes"}
LOADS_CAPTIONER = {"caption_images", "caption_groups"}


def inputs_and_outputs(checkout, *config):
    """Of the jobs of a dry run: {rule: inputs} and {output: rule}."""
    inputs, outputs, rule = {}, {}, ""
    output = dry_run(checkout, *config)
    for line in output.split("Job stats:")[1].splitlines():
        key, _, value = line.strip().partition(" ")
        if key in ("rule", "localrule"):
            rule = value.rstrip(":")
        elif key == "input:":
            inputs.setdefault(rule, set()).update(value.split(", "))
        elif key == "output:":
            outputs |= dict.fromkeys(value.split(", "), rule)
    return inputs, outputs


def test_a_plan_fetches_each_model_once_before_its_stages(checkout):
    config = ["dataset=dtd,eurosat", "method=zero_shot,latteclip,flyp_fused"]
    inputs, outputs = inputs_and_outputs(checkout, *config)
    notes = {file: rule for file, rule in outputs.items() if "resources/models/" in file}
    assert notes == dict.fromkeys((CLIP, CAPTIONER), "download_model")
    assert set(inputs) >= LOADS_CLIP | LOADS_CAPTIONER
    for rule, files in inputs.items():
        assert (CLIP in files) == (rule in LOADS_CLIP), rule
        assert (CAPTIONER in files) == (rule in LOADS_CAPTIONER), rule


def test_a_plan_is_what_a_person_reads(checkout):
    """Files, wildcards and reasons; the commands come with -p."""
    plan = dry_run(checkout, "dataset=demo")
    assert "latteclip finetune" not in plan and ".py" not in plan
    assert len(plan.encode()) < 15_000


def test_a_mistake_in_the_configuration_is_printed_whatever_is_quiet(checkout):
    for given in (("--config", "captionr=1"), ("results/captionr/images.parquet",)):
        run = checkout.snakemake(*given, "--quiet", "all")
        assert run.returncode != 0 and "Traceback" not in run.stdout
        assert len(re.findall("captionr'? is unknown", run.stdout)) == 1


def test_the_target_labels_stops_at_labels_and_a_classifier(checkout):
    """Whatever the methods read: zero-shot asks for no captions."""
    given = ["dataset=demo", "method=zero_shot"]
    jobs = set(jobs_of(checkout.ran("labels", "--dry-run", "--config", *given)))
    assert jobs >= {"index_images", "pseudo_label_images", "caption_images", "fuse_labels"}
    assert not jobs & {"finetune", "evaluate", "caption_groups", "report_dataset"}


# --- a folder of images --------------------------------------------------------------------------


def mine(checkout, folder, **changes):
    """Configuration file of a dataset `mine` in a folder of class folders."""
    dataset = {
        "source": {"folder": str(folder)},
        "class_names": "folders",
        "clip": {"model": "local-dir:latteclip/demo/models/clip"},
        **changes,
    }
    path = checkout.root / "mine.yaml"
    path.write_text(yaml.safe_dump({"dataset": "mine", "datasets": {"mine": dataset}}))
    return ["--configfile", str(path)]


def test_a_folder_is_indexed_again_where_its_images_changed_and_not_where_it_moved(
    checkout, tmp_path
):
    folder = class_folders(tmp_path / "pictures", n=6)
    target = "results/mine/images.parquet"
    checkout.ran(target, *mine(checkout, folder), "--config", "dataset=demo")
    (folder / "Thumbs.db").write_text("left by a file manager")
    moved = folder.rename(tmp_path / "moved")
    assert "Nothing to be done" in checkout.ran(target, *mine(checkout, moved))
    index = pq.read_table(checkout.root / target)["path"].to_pylist()
    assert all((checkout.root / path).is_file() for path in index)
    other = class_folders(tmp_path / "other", n=7)
    assert "index_images" in jobs_of(checkout.ran("-n", target, *mine(checkout, other)))
    link = checkout.root / "resources" / "mine" / "folder"
    assert link.resolve() == moved  # a dry run leaves it there
    os.utime(next(moved.rglob("*.png")))
    assert "index_images" in jobs_of(checkout.ran("-n", target, *mine(checkout, moved)))


def test_a_title_or_a_mirror_unpacks_nothing_again(checkout, tmp_path):
    photos = class_folders(tmp_path / "photos", n=2)
    archive = shutil.make_archive(tmp_path / "mine", "zip", photos)
    printed = [
        checkout.ran("resources/mine/data", *mine(checkout, "", title=title, source=source))
        for title, place in (("", archive), ("Photographs", "/no/mirror.zip"))
        for source in [{"downloads": {"mine.zip": {"sources": [place]}}}]
    ]
    assert "Nothing to be done" in printed[1]


def test_a_folder_without_labels_is_used_whole(checkout, tmp_path):
    folder = tmp_path / "pictures"
    files = write_pictures(folder, 12)
    shutil.copy(files[3], folder / "copy.png")
    (folder / "film.mov").write_text("no image")
    (folder / "classes.txt").write_text("red dots\nlines\n")
    methods = ("zero_shot", "zero_shot_adapted")
    mine_whole = mine(checkout, folder, class_names=None)
    checkout.ran(*mine_whole, "--config", f"method={','.join(methods)}")
    results = checkout.root / "results" / "mine"
    names = sorted([*(os.path.basename(file) for file in files), "copy.png"])
    for method in methods:
        place = results / method / "seed0"
        found = pq.read_table(place / "predictions.parquet").to_pydict()
        assert found["image_id"] == names and found["label"] == [None] * 13
        metrics = json.loads((place / "metrics.json").read_text())
        assert metrics["acc1"] is None and metrics["images"] == 13
    copies = pq.read_table(results / "duplicates.parquet").to_pylist()
    sets = {row["image_id"]: row["set"] for row in copies}
    assert sets["003.png"] == sets["copy.png"]
    assert (results / "report.html").is_file()
