"""The workflow in a folder of its own, as a module of another one, in a storage, and killed."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import yaml
from support import warm
from support.checkout import DEMO, edit, shrink
from support.image_folders import class_folders
from support.tiny import DEMO_CLIP

MINE = {"dataset": "mine", "image_dir": "photos", "class_names": "folders"}
INDEX = "results/mine/images.parquet"


@pytest.fixture
def project(tmp_path):
    """A folder with photos, and nothing of the repository."""
    folder = tmp_path / "my-project"
    class_folders(folder / "photos", n=5)
    return folder


def own_code(checkout, *arguments, cwd):
    """Run snakemake where no installed or inherited path leads to the checkout's code."""
    variables = {k: value for k, value in checkout.variables().items() if k != "PYTHONPATH"}
    command = ["-j2", *map(str, arguments)]
    status, output = warm.run("snakemake", command, variables, cwd, stages=True)
    assert status == 0, output
    return output


OUTER = """
configfile: "config.yaml"

rule count:
    input: "{index}"
    output: "counted.txt"
    shell: "wc -c < {{input}} > {{output}}"

module latteclip:
    snakefile: "{snakefile}"
    config: config["latteclip"]

use rule * from latteclip as latteclip_*

onstart: latteclip.onstart()
onerror: latteclip.onerror()
"""


def test_another_workflow_uses_it_as_a_module(checkout, project):
    snakefile = checkout.root / "workflow" / "Snakefile"
    (project / "Snakefile").write_text(OUTER.format(index=INDEX, snakefile=snakefile))
    config = {"samples": ["a"], "latteclip": {**MINE, "method": "flyp", "seeds": 2}}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    planned = own_code(checkout, "-n", "latteclip_all", cwd=project)
    assert re.search(r"^latteclip_finetune +2$", planned, re.MULTILINE)
    run = own_code(checkout, cwd=project)
    assert "localrule latteclip_index_images:" in run
    assert int((project / "counted.txt").read_text()) == (project / INDEX).stat().st_size
    for picture in (project / "photos").rglob("*.png"):
        picture.write_text("no picture")
    run = checkout.snakemake("--quiet", "all", cwd=project)
    assert run.returncode != 0 and "Traceback" not in run.stdout
    last = run.stdout.splitlines()[-1]
    assert re.match(r"error: latteclip_index_images .*mine.*\.png", last), last


INNER = """
configfile: "config.yaml"

module latteclip:
    snakefile: {snakefile}
    config: config
    {place}

use rule * from latteclip
"""


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(checkout, tmp_path):
    """The rules and no code in a repository of git, and the variables by which it is GitHub's."""
    folder = tmp_path / "hub" / "me" / "latteclip"
    folder.mkdir(parents=True)
    shutil.copy(checkout.root / "Snakefile", folder)
    shutil.copytree(checkout.root / "workflow", folder / "workflow")
    git(folder, "init", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--message=All")
    checkout.environment |= {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/hub/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
    }
    return folder


def module(checkout, project, snakefile, place, *arguments):
    """Run the workflow of a project that is the module alone."""
    text = INNER.format(snakefile=snakefile, place=place)
    (project / "Snakefile").write_text(text)
    config = {**MINE, "method": "zero_shot", "clip": {"model": f"local-dir:{DEMO_CLIP}"}}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    return checkout.ran(*arguments, cwd=project)


def test_a_module_writes_below_its_prefix(checkout, project):
    snakefile, place = f'"{checkout.root}/workflow/Snakefile"', 'prefix: "latte"'
    module(checkout, project, snakefile, place)
    assert (project / "latte/results/mine/report.html").is_file()
    assert "zero_shot" in (project / "latte/results/summary.md").read_text()
    assert not (project / "results").exists() and not (project / "resources").exists()
    answers = "latte/results/mine/answers.json"
    (project / answers).write_text('{"plan": "teach", "answers": []}')
    plan = module(checkout, project, snakefile, place, "-n")
    assert re.search(rf"rule score_unknown:\n +input: .*{answers}", plan)


def test_a_module_from_a_repository_is_its_rules_with_the_installed_code(
    checkout, project, repository
):
    replaced = 'replace_prefix: {"results/": "results/latte/"}'
    local = f'"git+file://{repository}/workflow/Snakefile@main"'
    index = "results/latte/mine/images.parquet"
    module(checkout, project, local, replaced, index)
    assert (project / index).is_file()
    hosted = 'github("me/latteclip", path="workflow/Snakefile", branch="main")'
    plan = module(checkout, project, hosted, replaced, "-n")
    assert "results/latte/summary.csv" in plan and "rule index_images" not in plan


# --- storage and locks ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("rsync") is None, reason="the plugin copies with rsync")
def test_a_storage_holds_the_results_that_a_folder_would(finished_copy, tmp_path):
    root, elsewhere = finished_copy.root, tmp_path / "storage"
    metrics = "results/demo/zero_shot/seed0/metrics.json"
    expected = (root / metrics).read_text()
    shutil.rmtree(root / "results")
    storage = ("--default-storage-provider", "fs", "--default-storage-prefix", elsewhere)
    command = ("--config", "method=zero_shot,zero_shot_adapted", *storage)
    assert "rule index_images" in finished_copy.ran("--dry-run", *command)
    finished_copy.ran(*command)
    assert (elsewhere / metrics).read_text() == expected
    for name in ("results/summary.md", "results/demo/selection.json"):
        assert (elsewhere / name).is_file()
    assert not [file for file in (root / "results").rglob("*") if file.is_file()]
    assert not (elsewhere / "resources").exists()  # images and answers stay
    assert "Nothing to be done" in finished_copy.ran(*command)
    answers = root / "results/demo/answers.json"  # a person's commands write here
    answers.parent.mkdir(parents=True, exist_ok=True)
    answers.write_text('{"plan": "teach", "answers": []}')
    assert "rule score_unknown" in finished_copy.ran("--dry-run", *command)


@pytest.mark.slow
def test_after_a_killed_run_the_next_names_the_option_that_removes_its_lock(checkout):
    edit(checkout, DEMO, shrink)
    target = "results/demo/images.parquet"
    lock = checkout.root / ".snakemake" / "locks" / "0.output.lock"
    run = checkout.start("snakemake", "-j1", target, start_new_session=True)
    try:
        while not (lock.exists() and lock.read_text()) and run.poll() is None:
            time.sleep(0.005)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    refused = checkout.snakemake(target)
    assert refused.returncode != 0 and "--unlock" in refused.stdout
    checkout.ran("--unlock")
    checkout.ran(target)
    assert not list(checkout.root.rglob("*.tmp"))
