"""The environments agree with pyproject.toml, and `make install` with the driver."""

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
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


@pytest.mark.slow
def test_python_finds_the_package_beside_a_clone_of_its_name(tmp_path):
    """There, the folder of the clone looks like a package to Python. Nothing is installed."""
    clone = tmp_path / "latteclip"
    (clone / "config").mkdir(parents=True)  # of the clone, and a package of the same name
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    shutil.copytree(ROOT / "latteclip", clone / "latteclip")
    settings = re.findall(r"--config-settings (\w+)=(\w+)", (ROOT / "Makefile").read_text())
    code = "import sys; from setuptools import build_meta as b; b.build_editable('..', {})"
    code = code.replace("{}", repr(dict(settings)))
    subprocess.run([sys.executable, "-c", code], cwd=clone, check=True)
    [wheel] = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", format="zip")
    # Without the installed package, and with the current folder first.
    code = "import os, sys; is_other = lambda p: p and os.path.isdir(f'{p}/latteclip'); "
    code += "sys.path = [p for p in sys.path if not is_other(p)]; import site; "
    code += f"site.addsitedir({str(tmp_path / 'site')!r}); from latteclip.config import hub_names; "
    code += "print(hub_names.__file__)"
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(clone / "latteclip")


@pytest.fixture(scope="module")
def conda_file():
    return yaml.safe_load((ENVS / "latteclip.yaml").read_text("utf-8"))


def test_the_conda_environment_lists_the_pins_of_a_gpu_machine(conda_file):
    (pip,) = [part["pip"] for part in conda_file["dependencies"] if isinstance(part, dict)]
    assert pip == lines_of(ENVS / "cuda.txt")


def test_its_python_is_one_that_the_package_runs_on(conda_file):
    (python,) = [
        part
        for part in conda_file["dependencies"]
        if str(part).partition("=")[0] == "python"
    ]
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert python.partition("=")[2] in allowed


def test_every_rule_names_an_environment_that_exists():
    files = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
    named = {
        (file.parent / name).resolve()
        for file in files
        for name in re.findall(
            r'^    conda:\n        "(.+)"$', file.read_text(), re.MULTILINE
        )
    }
    assert named == {ENVS / "latteclip.yaml"}
    said = sum(text.count("    conda:") for text in (file.read_text() for file in files))
    rules = sum(
        len(re.findall(r"^rule ", file.read_text(), re.MULTILINE)) for file in files
    )
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
        assert (version.operator, pin.url, "+" in version.version) == ("==", None, False), (
            pin
        )
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
    checks = (
        "envs/check_driver.py" in told.partition("--requirement")[0]
    )  # before the download
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


def test_make_refuses_a_driver_that_does_not_answer_and_says_both_ways_out(
    machine, monkeypatch
):
    broken_nvidia_smi(machine)
    run = make()
    assert run.returncode
    assert "export CUDA_VISIBLE_DEVICES=" in run.stderr
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "envs/cpu.txt" in make("--dry-run", "--always-make").stdout


def test_a_login_node_with_a_driver_and_no_gpu_installs_for_cuda_with_a_warning(machine):
    broken_nvidia_smi(machine)
    assert (
        "check_driver.py --warn" in make("--dry-run", "--always-make", "KIND=cuda").stdout
    )
    command = [sys.executable, "-S", ENVS / "check_driver.py", "--warn"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr.startswith("warning: nvidia-smi")) == (0, True)


@pytest.mark.parametrize(("driver", "is_old"), [("535.183.01", True), ("580.65.06", False)])
def test_an_old_driver_is_refused_before_anything_is_downloaded(machine, driver, is_old):
    nvidia_smi(machine, {"GPU-0": []}, driver=driver)
    assert (
        "envs/check_driver.py \n" in make("--dry-run", "--always-make").stdout
    )  # no --warn
    command = [sys.executable, "-S", ENVS / "check_driver.py"]  # nothing is installed
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, "needs driver 580" in run.stderr) == (is_old, is_old)
