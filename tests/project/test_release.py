"""What the release workflow does, as far as this machine can: sdist, wheel, a new environment."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser

import pytest
import yaml
from support.tiny import ROOT

from latteclip import __version__

RELEASE = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))
SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def copied_by_the_image():
    """What the Dockerfile copies into the source folder of the image."""
    text = (ROOT / "envs" / "Dockerfile").read_text("utf-8")
    lines = re.findall(r"^COPY (.+) /opt/latteclip/source/\S*$", text, re.M)
    return [name for line in lines for name in line.split()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from an sdist of what the image has of the source, as `build` does."""
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    source.mkdir()
    for name in copied_by_the_image():
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", SDIST, folder], cwd=source, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command = [*build, "--wheel-dir", folder, unpacked]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (found,) = folder.glob("*.whl")
    return found


def files_of(folder):
    """The files of a folder of the repository, by their path in it."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in files if path.suffix != ".pyc"}


def test_the_wheel_holds_every_file_of_the_workflow(wheel):
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
    for name in ("workflow", "config", "profiles", "envs"):
        place = f"latteclip/shipped/{name}/"
        found = {path.removeprefix(place) for path in held if path.startswith(place)}
        assert found == files_of(ROOT / name), name
    code = {path for path in files_of(ROOT / "latteclip") if path.endswith(".py")}
    assert {f"latteclip/{path}" for path in code} <= held


def test_the_wheel_describes_itself(wheel):
    assert wheel.name.startswith(f"latteclip-{__version__}-py3-none-any")
    with zipfile.ZipFile(wheel) as file:
        (name,) = [one for one in file.namelist() if one.endswith("dist-info/METADATA")]
        metadata = Parser().parsestr(file.read(name).decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_payload().startswith("# ")  # the README
    assert "Programming Language :: Python :: 3.13" in metadata.get_all("Classifier")
    assert metadata["Keywords"] and metadata.get_all("Project-URL")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment with the wheel, and the packages of this one behind it."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    # Not a site folder: its own .pth files, such as that of an editable latteclip, do not count.
    packages = sysconfig.get_path("purelib")
    (site / "others.pth").write_text(f"{packages}\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    command = [*pip, "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(command, check=True)
    return folder / "bin"


def latteclip(installed, folder, *words):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = os.pathsep.join([str(installed), os.environ["PATH"]])
    return subprocess.run(
        [installed / "latteclip", *words],
        cwd=folder,
        env=kept | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_new_environment_plans_the_demo(installed, tmp_path):
    version = latteclip(installed, tmp_path, "--version")
    assert version.stdout.strip() == f"latteclip {__version__}", version.stderr
    words = ("workflow", "-n", "--config", "dataset=demo")
    planned = latteclip(installed, tmp_path, *words)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    text = planned.stdout + planned.stderr
    assert re.search(r"^finetune +\d", text, re.M)
    assert re.search(rf"{installed.parent}\S*/latteclip/train/finetune\.py", text)
    assert re.search(rf'"local-dir:{installed.parent}\S*/latteclip/demo/models/clip"', text)
    assert f"{ROOT}/latteclip" not in text


@pytest.mark.slow
def test_a_new_environment_runs_the_demo(installed, tmp_path):
    small = "datasets={'demo': {'source': {'textures': {'train': 60, 'test': 40}}}}"
    words = ("workflow", "--cores", "1", "--config", "dataset=demo", "seeds=1", small)
    run = latteclip(installed, tmp_path, *words, "method=zero_shot,image_prototypes")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "zero_shot" in (tmp_path / "results" / "summary.md").read_text()
    assert (tmp_path / "results" / "demo" / "report.html").is_file()
    model = tmp_path / "results" / "demo"
    photos = next(tmp_path.glob("resources/demo/**/*.png")).parent
    predicted = latteclip(installed, tmp_path, "predict", model, photos, "--device", "cpu")
    assert predicted.stdout.startswith("path,classname"), predicted.stderr


def test_the_version_and_its_notes_are_one(tmp_path):
    steps = RELEASE["jobs"]["package"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    (tagged,) = [text for text in commands if "GITHUB_REF_NAME" in text and "test" in text]
    for tag, status in ((f"v{__version__}", 0), ("v0.0.1", 1)):
        environment = os.environ | {"GITHUB_REF_NAME": tag, "PYTHONPATH": str(ROOT)}
        tagged_run = subprocess.run(tagged, shell=True, cwd=ROOT, env=environment)
        assert tagged_run.returncode == status
    (notes,) = [text for text in commands if "notes.md" in text and "awk" in text]
    shutil.copy(ROOT / "CHANGELOG.md", tmp_path)
    subprocess.run(notes, shell=True, cwd=tmp_path, check=True)
    first, *rest = (tmp_path / "notes.md").read_text().splitlines()
    assert first.startswith(f"## {__version__}")
    assert len(rest) > 5 and not [line for line in rest if line.startswith("## ")]


def test_the_image_runs_the_command():
    text = (ROOT / "envs" / "Dockerfile").read_text("utf-8")
    assert 'ENTRYPOINT ["latteclip"]' in text
    for name in [*copied_by_the_image(), "envs/cuda.txt"]:
        assert (ROOT / name).exists()
    assert "--no-deps --requirement /opt/latteclip/requirements.txt" in text
    assert RELEASE["jobs"]["image"]["steps"][-1]["with"]["file"] == "envs/Dockerfile"


def test_the_promise_of_systems_and_pythons_is_one():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    job = matrix["jobs"]["elsewhere"]
    pythons = job["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    prefix = "Programming Language :: Python :: "
    listed = [
        name.removeprefix(prefix) for name in project["classifiers"] if prefix in name
    ]
    assert listed[1:] == pythons
    for step in job["steps"]:
        for path in re.findall(r"\btests/\S+", step.get("run", "")):
            assert (ROOT / path).exists(), path
