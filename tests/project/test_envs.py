"""The environments agree with pyproject.toml; Snakemake gets along with what stands in for tools.

Neither conda nor Apptainer is asked for: two scripts answer in their place, in the way in which
Snakemake calls them. What they would install is not tested.
"""

import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.checkout import Checkout
from support.tiny import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ENVS = ROOT / "envs"
WITH_VLLM = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["vllm"]]


def requirements(lines):
    """Name -> specifiers."""
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): one.specifier for one in found}


@pytest.fixture(scope="module")
def conda_file():
    return yaml.safe_load((ENVS / "latteclip.yaml").read_text("utf-8"))


def pinned_lines():
    lines = (ENVS / "cpu.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_conda_environment_asks_for_what_the_package_asks_for(conda_file):
    (pip,) = [part["pip"] for part in conda_file["dependencies"] if isinstance(part, dict)]
    assert pip == sorted(pip, key=str.lower)
    assert requirements(pip) == requirements(WITH_VLLM)
    assert len(pip) == len(WITH_VLLM)


def test_its_python_is_one_that_the_package_runs_on(conda_file):
    (python,) = [
        part for part in conda_file["dependencies"] if str(part).partition("=")[0] == "python"
    ]
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert python.partition("=")[2] in allowed


def test_every_rule_names_an_environment_that_exists():
    files = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
    named = {
        (file.parent / name).resolve()
        for file in files
        for name in re.findall(r'^    conda:\n        "(.+)"$', file.read_text(), re.MULTILINE)
    }
    assert named == {ENVS / "latteclip.yaml"}
    said = sum(text.count("    conda:") for text in (file.read_text() for file in files))
    rules = sum(len(re.findall(r"^rule ", file.read_text(), re.MULTILINE)) for file in files)
    assert said == rules


def test_the_pins_satisfy_what_the_package_asks_for():
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["cpu"], *extras["onnx"], *extras["dev"]]
    pinned = requirements(pinned_lines())
    for name, specifier in requirements(wanted).items():
        assert name in pinned, name
        versions = [one.version for one in pinned[name] if one.operator in ("==", ">=")]
        assert versions, name
        assert all(version in specifier for version in versions), (name, versions, specifier)


def test_the_pins_come_from_a_package_index_of_any_kind():
    """A URL or a build such as 2.13.0+cpu would tie them to one host."""
    for line in pinned_lines():
        requirement = Requirement(line)
        assert requirement.url is None, line
        assert "+" not in str(requirement.specifier), line
    names = [canonicalize_name(Requirement(line).name) for line in pinned_lines()]
    assert len(names) == len(set(names))


def test_the_image_installs_what_the_package_asks_for(tmp_path):
    recipe = (ENVS / "latteclip.def").read_text("utf-8")
    sections = re.split(r"^%(\w+)$", recipe, flags=re.MULTILINE)
    named = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert set(named) == {"files", "post", "environment", "test"}
    copied = [line.split() for line in named["files"].strip().splitlines()]
    assert all((ROOT / source).is_file() for source, _ in copied)
    code = re.search(r'python -c "(.+)" > requirements.txt', named["post"])[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines() == WITH_VLLM, run.stderr


# --- Snakemake with stand-ins for conda and Apptainer --------------------------------------------

CONDA = """\
case "$*" in
  "info --json") echo '{{"conda_prefix": "{base}", "platform": "linux-64"}}' ;;
  --version) echo "conda 25.1.0" ;;
  "config --get"*) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
  "env create"*)
    prefix="${{@: -1}}"
    mkdir -p "$prefix/bin"
    ln -s "{base}/image/python" "$prefix/bin/python" ;;
  "clean "*) ;;
  *) exit 3 ;;
esac
"""
ACTIVATE = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n'
APPTAINER = """\
if [ "$*" = --version ]; then echo "apptainer version 1.3.4"; exit; fi
echo "$@" >> apptainer.log
PATH="{image}:$PATH" exec "${{@: -3}}"
"""
# Where the package is installed for these tests, an interpreter takes this as its sitecustomize.
NOT_INSTALLED = """\
import importlib.metadata as metadata
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
version = metadata.version


def version_of_others(name):
    if name == "latteclip":
        raise metadata.PackageNotFoundError(name)
    return version(name)


metadata.version = version_of_others
"""
TARGET = "results/demo/images.parquet"


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def indexed(tmp_path):
    """A checkout with an index made without either; `python -m latteclip` in it leaves a note."""
    checkout = Checkout(tmp_path / "checkout")
    main = checkout.root / "latteclip" / "__main__.py"
    note = "import pathlib\n\npathlib.Path('ran').write_text(__file__)\n"
    main.write_text(note + main.read_text())
    dataset = checkout.root / "config" / "datasets" / "demo.yaml"
    content = yaml.safe_load(dataset.read_text())
    content["datasets"]["demo"]["source"]["textures"] |= {"train": 60, "test": 40}
    dataset.write_text(yaml.safe_dump(content))
    run = checkout.snakemake(TARGET)
    assert run.returncode == 0, run.stdout
    return checkout


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Stand-ins for conda and Apptainer, found before the true ones if there are any."""
    folder = tmp_path / "tools"
    script(folder / "conda", CONDA.format(base=tmp_path))
    script(tmp_path / "bin" / "activate", ACTIVATE)
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(NOT_INSTALLED)
    python = f'PYTHONPATH={tmp_path / "hide"} exec {sys.executable} "$@"\n'
    script(tmp_path / "image" / "python", python)
    (tmp_path / "image" / "latteclip").symlink_to(ENVS / "latteclip.sh")
    script(folder / "apptainer", APPTAINER.format(image=tmp_path / "image"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def snakemake(checkout, *arguments):
    """Snakemake where nothing but the current folder leads to the package's code."""
    return checkout.run("env", "-u", "PYTHONPATH", "snakemake", "-j2", TARGET, *arguments)


def test_a_conda_environment_runs_the_code_of_the_folder(indexed, tools, tmp_path):
    prefix = tmp_path / "environments"
    run = snakemake(indexed, "--sdm", "conda", "--conda-prefix", prefix, "--forcerun", TARGET)
    assert run.returncode == 0, run.stdout
    assert "Running post-deploy script" in run.stdout
    assert (indexed.root / "ran").read_text() == str(indexed.root / "latteclip" / "__main__.py")
    (command,) = prefix.glob("*/bin/latteclip")
    assert command.read_text() == (ENVS / "latteclip.sh").read_text()


def test_a_container_runs_the_code_of_the_folder(indexed, tools):
    (indexed.root / "some.sif").touch()
    options = ("--sdm", "apptainer", "--config", "container=some.sif")
    run = snakemake(indexed, *options, "--forceall")
    assert run.returncode == 0, run.stdout
    asked = (indexed.root / "apptainer.log").read_text()
    assert re.search(
        rf"exec --home {indexed.root} .*some\.sif bash -c .*latteclip index-images", asked
    )
    assert (indexed.root / "ran").read_text() == str(indexed.root / "latteclip" / "__main__.py")
    told = indexed.run("latteclip", "status", *options, "method=zero_shot").stdout
    assert re.search("done +index_images$", told, re.MULTILINE), told


def test_an_image_reruns_stages_only_where_it_is_used(indexed, tools):
    image = ("--dry-run", "--config", "container=some.sif")
    assert "Nothing to be done" in snakemake(indexed, *image).stdout
    used = snakemake(indexed, *image, "--sdm", "apptainer")
    assert used.stdout.count("oftware environment definition has changed") >= 2
    ignoring = ("--rerun-triggers", "mtime", "params", "input", "code")
    assert (
        "Nothing to be done" in snakemake(indexed, *image, "--sdm", "apptainer", *ignoring).stdout
    )
