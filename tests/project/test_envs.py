"""The environments agree with pyproject.toml, and a wheel has all of the workflow."""

import os
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.tiny import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ENVS = ROOT / "envs"
# Each list of pins with the extras that it is for.
PINS = {"cpu": ("cpu", "slurm", "onnx", "dev"), "cuda": ("vllm", "slurm", "onnx", "dev")}


def lines_of(name):
    lines = (ENVS / name).read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(("kind", "extras"), PINS.items())
def test_the_pins_are_single_versions_that_satisfy_what_the_package_asks_for(kind, extras):
    """A URL or a build such as 2.13.0+cpu would tie them to one host."""
    pins = {}
    for pin in map(Requirement, lines_of(f"{kind}.txt")):
        [version] = pin.specifier
        assert (version.operator, pin.url, "+" in version.version) == ("==", None, False)
        assert pins.setdefault(canonicalize_name(pin.name), version.version)
    optional = PROJECT["optional-dependencies"]
    wanted = [
        *PROJECT["dependencies"],
        *(line for each in extras for line in optional[each]),
    ]
    for one in map(Requirement, wanted):
        assert pins[canonicalize_name(one.name)] in one.specifier, one
        assert {each.operator for each in one.specifier} == {">=", "<"}


@pytest.mark.parametrize("kind", PINS)
def test_the_image_has_a_list_of_pins_and_what_the_package_is_built_of(kind, checkout):
    text = (ENVS / "Dockerfile").read_text("utf-8").replace("${PINS}", kind)
    copies = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    sources = {source for each in copies for source in each}
    assert all((ROOT / source).exists() for source in sources)
    assert f"envs/{kind}.txt" in sources
    assert sources >= {path.name for path in checkout.root.iterdir()} | {"pyproject.toml"}


# --- the wheel -----------------------------------------------------------------------------------

BUILD = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
PLAN = "from latteclip.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"


def files_of(folder):
    """The files of a folder, by their path in it."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in files if path.suffix != ".pyc"}


@pytest.mark.slow
def test_a_wheel_has_the_workflow_and_plans_the_demo_in_any_folder(checkout, tmp_path):
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        if (ROOT / name).is_file():
            (checkout.root / name).write_bytes((ROOT / name).read_bytes())
    done = checkout.run(sys.executable, "-c", BUILD, tmp_path)
    [wheel] = tmp_path.glob("latteclip-*.whl")
    assert done.returncode == 0, done.stdout
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("workflow", "config", "profiles", "envs"):
        assert files_of(site / "latteclip" / "shipped" / name) == files_of(ROOT / name)
    here = tmp_path / "here"
    here.mkdir()
    words = ("-c", PLAN, "workflow", "-n", "--config", "dataset=demo")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    planned = checkout.run(sys.executable, *words, cwd=here, env=environment)
    assert planned.returncode == 0, planned.stdout
    assert f"{site}/latteclip/demo/models/llava" in planned.stdout
