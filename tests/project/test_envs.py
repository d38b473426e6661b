"""The environments agree with pyproject.toml; Snakemake gets along with what stands in for tools.

Neither conda nor Apptainer is asked for: two scripts answer in their place, in the way in which
Snakemake calls them. What they would install is not tested.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from support.checkout import Checkout
from support.nvidia import broken_nvidia_smi, nvidia_smi
from support.tiny import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ENVS = ROOT / "envs"
# Each list of pins with the extras that it is for.
LEFT_OUT = ("torchaudio", "torchcodec")
PINS = {"cpu": ("cpu", "slurm", "onnx", "dev"), "cuda": ("vllm", "slurm", "onnx", "dev")}


def requirements(lines):
    """Name -> specifiers."""
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): one.specifier for one in found}


def lines_of(file):
    lines = file.read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def conda_file():
    return yaml.safe_load((ENVS / "latteclip.yaml").read_text("utf-8"))


def test_the_conda_environment_lists_the_pins_of_a_gpu_machine(conda_file):
    (pip,) = [part["pip"] for part in conda_file["dependencies"] if isinstance(part, dict)]
    assert pip == lines_of(ENVS / "cuda.txt")


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


@pytest.mark.parametrize(("kind", "extras"), PINS.items())
def test_the_pins_satisfy_what_the_package_asks_for(kind, extras):
    optional = (
        optional for extra in extras for optional in PROJECT["optional-dependencies"][extra]
    )
    pins = requirements(lines_of(ENVS / f"{kind}.txt"))
    for name, allowed in requirements([*PROJECT["dependencies"], *optional]).items():
        assert name in pins, name
        (pin,) = pins[name]
        assert pin.version in allowed, (name, pin, allowed)


@pytest.mark.parametrize("kind", PINS)
def test_each_pin_is_one_version_that_any_package_index_has(kind):
    """A URL or a build such as 2.13.0+cpu would tie them to one host."""
    pins = [Requirement(line) for line in lines_of(ENVS / f"{kind}.txt")]
    for pin in pins:
        (version,) = pin.specifier
        assert (version.operator, pin.url, "+" in version.version) == ("==", None, False), pin
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_pins_are_all_that_the_packages_ask_for_with_each_python(python):
    """Of the environment that runs the tests; torchaudio and torchcodec are left out of it."""
    pins = requirements(lines_of(ENVS / "cpu.txt"))
    marked = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    for name in pins:
        with contextlib.suppress(metadata.PackageNotFoundError):
            for one in map(Requirement, metadata.requires(name) or []):
                wanted = canonicalize_name(one.name)
                if wanted in LEFT_OUT or (one.marker and not one.marker.evaluate(marked)):
                    continue
                assert wanted in pins, (name, one)
                (pin,) = pins[wanted]
                allowed = SpecifierSet(str(one.specifier).replace("+cpu", ""))
                assert allowed.contains(pin.version, prereleases=True), (name, one, pin)


def test_ranges_end_so_that_an_index_is_searched_quickly():
    for line in itertools.chain(
        PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()
    ):
        ends = {one.operator for one in Requirement(line).specifier}
        assert ends == {">=", "<"}, line


def test_the_image_installs_the_pins():
    recipe = (ENVS / "latteclip.def").read_text("utf-8")
    sections = re.split(r"^%(\w+)$", recipe, flags=re.MULTILINE)
    named = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert set(named) == {"files", "post", "environment", "test"}
    copied = dict(line.split() for line in named["files"].strip().splitlines())
    assert all((ROOT / source).is_file() for source in copied)
    assert f"--no-deps --requirement {copied['envs/cuda.txt']}\n" in named["post"]


@pytest.mark.parametrize(("kind", "extras"), PINS.items())
def test_make_installs_and_renews_the_pins(kind, extras):
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", "install", "envs", f"KIND={kind}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert f"--no-deps --requirement envs/{kind}.txt\n" in told
    checks = "envs/check_driver.py" in told.partition("--requirement")[0]  # before the download
    assert checks == (kind == "cuda")
    assert f"python envs/pin.py {kind}" in told


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with an nvidia-smi of its own."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def make(*arguments):
    command = ["make", *arguments, "install"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_make_refuses_a_driver_that_does_not_answer_and_says_both_ways_out(machine, monkeypatch):
    broken_nvidia_smi(machine)
    run = make()
    assert run.returncode
    assert "export CUDA_VISIBLE_DEVICES=" in run.stderr
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "envs/cpu.txt" in make("--dry-run", "--always-make").stdout


@pytest.mark.parametrize(("driver", "is_old"), [("535.183.01", True), ("580.65.06", False)])
def test_an_old_driver_is_refused_before_anything_is_downloaded(machine, driver, is_old):
    nvidia_smi(machine, {"GPU-0": []}, driver=driver)
    assert "envs/check_driver.py" in make("--dry-run", "--always-make").stdout
    command = [sys.executable, "-S", ENVS / "check_driver.py"]  # nothing is installed
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, "needs driver 580" in run.stderr) == (is_old, is_old)


# --- making the pins -----------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of made wheels: makes one of a name, a version and what it depends on."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    options = tmp_path / "pip.conf"
    options.write_text(f"[global]\nno-index = true\nfind-links = {folder}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(options))
    for name in ("PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)

    def make(name, version, *depends):
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        metadata = "\n".join([*lines, *(f"Requires-Dist: {one}" for one in depends)])
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}-{version}.dist-info/METADATA", metadata + "\n")
            wheel.writestr(f"{name}-{version}.dist-info/WHEEL", tag)
            wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")

    return make


@pytest.fixture
def project(tmp_path):
    """A copy of what makes pins, for a project that asks for little."""
    (tmp_path / "envs").mkdir()
    shutil.copy(ENVS / "pin.py", tmp_path / "envs")
    (tmp_path / "envs" / "cpu.txt").write_text("old==1\n")
    (tmp_path / "envs" / "latteclip.yaml").write_text("# kept\n  - pip:\n      - old\n")
    extras = {"cpu": ["engine"], "vllm": ["engine"], "slurm": [], "onnx": [], "dev": ["tool"]}
    listed = "".join(f"{name} = {json.dumps(value)}\n" for name, value in extras.items())
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\ndependencies = ["Base<2"]\n[project.optional-dependencies]\n{listed}'
    )
    return tmp_path


def make_pins(project, kind):
    command = [sys.executable, project / "envs" / "pin.py", kind]
    return subprocess.run(command, capture_output=True, text=True)


def test_pins_are_all_that_goes_together_without_builds(index, project, monkeypatch):
    index("Base", "1.5")
    index("Base", "1.9", "torch<2")
    index("Base", "2.0")
    index("engine", "1.2", "torch>=2", "torchaudio")
    index("engine", "2.0", "torch>=2")
    index("torch", "2.1+cpu")
    index("torchaudio", "1")
    index("tool", "3.0")
    constraints = project / "constraints.txt"
    constraints.write_text("engine<2\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))  # counts for the CPU alone
    for kind, engine in (("cpu", ["engine==1.2"]), ("cuda", ["engine==2.0"])):
        run = make_pins(project, kind)
        assert run.returncode == 0, run.stderr
        pins = lines_of(project / "envs" / f"{kind}.txt")
        assert pins == ["Base==1.5", *engine, "tool==3.0", "torch==2.1"]
    listed = (project / "envs" / "latteclip.yaml").read_text()
    assert listed.startswith("# kept\n")
    assert yaml.safe_load(listed) == [{"pip": pins}]


def test_pins_stay_where_nothing_goes_together(index, project):
    index("Base", "2.0")
    run = make_pins(project, "cpu")
    assert run.returncode == 1
    assert "pip finds no versions that go together" in run.stderr
    assert lines_of(project / "envs" / "cpu.txt") == ["old==1"]


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
