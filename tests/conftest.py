import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny import DEMO_CLIP, ROOT, SHARED

from latteclip import clip as clips

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session")
def demo_clip():
    return clips.load(f"local-dir:{DEMO_CLIP}", None, torch.device("cpu"))


@pytest.fixture(scope="session")
def photographs():
    """Folder of real photographs: images/<class>/ and a CoOp split JSON."""
    folder = SHARED / "data" / "dtd10"
    if not folder.is_dir():
        pytest.skip("no photographs beside the repository (../shared/data/dtd10)")
    return folder


@dataclass
class Checkout:
    """A copy of the repository, in which Snakemake runs on the copy's own code."""

    root: Path

    def __post_init__(self):
        self.root.mkdir(parents=True)
        hidden = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("workflow", "config", "profiles", "latteclip", "envs"):
            shutil.copytree(ROOT / name, self.root / name, ignore=hidden)
        shutil.copy(ROOT / "Snakefile", self.root)
        (self.root / "README.md").write_text("The manual.\n")

    def start(self, *command, path=(), **options):
        """Start a command of the environment here; its output is stdout and stderr together."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([*map(str, path), str(self.root)]),
            "HF_HUB_OFFLINE": "1",
        }
        return subprocess.Popen(
            list(map(str, command)),
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def run(self, *command, path=()):
        """Run a command of the environment here to its end."""
        with self.start(*command, path=path) as process:
            output, _ = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def snakemake(self, *arguments, path=()):
        return self.run("snakemake", "-j2", *arguments, path=path)


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "checkout")


@pytest.fixture(scope="session")
def new_checkout(tmp_path_factory):
    """Makes checkouts that outlive a test."""
    return lambda name: Checkout(tmp_path_factory.mktemp(name) / "checkout")
