"""The workflow run from a folder of its own, and as a module of another workflow."""

import re

import pytest
import yaml
from support import warm
from support.image_folders import class_folders

FOLDERS = {"classes": "folders"}
MINE = ("dataset=mine", "image_dir=photos", f"split={FOLDERS}")
INDEX = "results/mine/images.parquet"
# The commands of a checkout say where they run and whose code they are.
NOTE = "import pathlib\n\npathlib.Path('ran').write_text(__file__)\n"


@pytest.fixture
def project(tmp_path):
    """A folder with photos, and nothing of the repository."""
    folder = tmp_path / "my-project"
    class_folders(folder / "photos", n=5)
    return folder


def own_code(checkout, *arguments, cwd):
    """Run snakemake where no installed or inherited path leads to the checkout's code."""
    variables = {k: value for k, value in checkout.variables().items() if k != "PYTHONPATH"}
    status, output = warm.run("snakemake", [*map(str, arguments)], variables, cwd)
    assert status == 0, output
    return output


def tiny_clip(checkout):
    return {
        "model": f"local-dir:{checkout.root}/latteclip/demo/models/clip",
        "pretrained": None,
    }


def write_yaml(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))


def files_of(folder):
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


# --- a folder of its own -------------------------------------------------------------------------


def test_photos_in_a_folder_of_their_own(checkout, project, tmp_path):
    main = checkout.root / "latteclip" / "cli" / "main.py"
    main.write_text(
        main.read_text().replace("import argparse\n", f"import argparse\n{NOTE}", 1)
    )
    write_yaml(project / "config" / "config.yaml", {"clip": tiny_clip(checkout)})
    before = files_of(checkout.root)
    snakemake = ("-j2", "--snakefile", checkout.root / "Snakefile")
    snakemake += ("--directory", project, "--config", *MINE)
    own_code(checkout, *snakemake, "--", INDEX, cwd=tmp_path)
    assert (project / INDEX).is_file()
    assert (project / "ran").read_text() == str(main)
    assert files_of(checkout.root) == before
    module = checkout.root / "latteclip" / "data" / "index_images.py"
    module.write_text(module.read_text() + "\n# Edited.\n")
    again = own_code(checkout, *snakemake, "-n", "--", INDEX, cwd=tmp_path)
    assert f"Updated input files: {module}" in again


def test_files_of_a_project_add_datasets_and_change_defaults(checkout, project):
    values = {
        "source": {"folder": "photos"},
        "split": {"kind": "folders"},
        "template": "a {}.",
    }
    values |= {"prompts": {"image": "?", "group": "?"}, "groups": {"gap": 3}}
    config = project / "config"
    write_yaml(config / "datasets" / "mine.yaml", {"datasets": {"mine": values}})
    changed = {"dataset": "mine", "seeds": 1, "groups": {"gap": 9, "seed": 5}}
    write_yaml(config / "config.yaml", changed | {"clip": tiny_clip(checkout)})
    planned = checkout.latteclip("workflow", "-n", cwd=project).stdout
    assert re.search(r"^finetune +1$", planned, re.MULTILINE), planned
    assert '"gap": 3' in planned and '"seed": 5' in planned
    assert "mine" in checkout.latteclip("datasets", cwd=project).stdout


# --- a module of another workflow ----------------------------------------------------------------

OUTER = """
configfile: "config/config.yaml"

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


@pytest.fixture
def outer(checkout, project):
    """Another workflow, with a configuration of its own, that uses this one."""
    snakefile = checkout.root / "workflow" / "Snakefile"
    text = OUTER.format(index=INDEX, snakefile=snakefile)
    (project / "Snakefile").write_text(text)
    asked = {"dataset": "mine", "image_dir": "photos", "split": FOLDERS}
    asked["clip"] = tiny_clip(checkout)
    write_yaml(project / "config" / "config.yaml", {"samples": ["a"], "latteclip": asked})
    return project


def test_another_workflow_uses_it_as_a_module(checkout, outer):
    run = own_code(checkout, "-j2", cwd=outer)
    assert "localrule latteclip_index_images:" in run
    assert "mine: 10 image files in photos, classes: 2 folders (" in run
    assert "profile" not in run
    assert int((outer / "counted.txt").read_text()) == (outer / INDEX).stat().st_size
    for picture in (outer / "photos").rglob("*.png"):
        picture.write_text("no picture")
    run = checkout.run("snakemake", "-j2", "--quiet", "all", cwd=outer)
    assert run.returncode != 0 and "Traceback" not in run.stdout
    last = run.stdout.splitlines()[-1]
    assert re.match(r"error: latteclip_index_images of mine.*\.png", last), last


def test_a_module_takes_the_options_of_the_command_line(checkout, outer):
    text = (outer / "Snakefile").read_text().replace('config["latteclip"]', "config")
    (outer / "Snakefile").write_text(text.replace('configfile: "config/config.yaml"', ""))
    command = ("-n", "latteclip_all", "--config", "seeds=2", "method=flyp")
    planned = own_code(checkout, *command, *MINE, cwd=outer)
    assert re.search(r"^latteclip_finetune +2$", planned, re.MULTILINE)
    assert "photos" in planned
