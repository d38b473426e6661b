import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
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
    environment: dict = field(default_factory=dict)  # beside that of the tests

    def __post_init__(self):
        self.root.mkdir(parents=True)
        hidden = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("workflow", "config", "profiles", "latteclip", "envs"):
            shutil.copytree(ROOT / name, self.root / name, ignore=hidden)
        shutil.copy(ROOT / "Snakefile", self.root)
        (self.root / "README.md").write_text("The manual.\n")

    def start(self, *command, path=(), **options):
        """Start a command of the environment here; its output is stdout and stderr together."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **self.environment}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
            "PYTHONPATH": os.pathsep.join([*map(str, path), str(self.root)]),
        }
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        return subprocess.Popen(
            list(map(str, command)), cwd=self.root, env=environment, text=True, **options
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


N_TRAIN, N_TEST = 60, 40
DEMO = "config/datasets/demo.yaml"


def edit(checkout, file, change):
    """Change a YAML file of a checkout in place."""
    path = checkout.root / file
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def shrink(content):
    """The demo with few images and one epoch, and an engine that starts quickly."""
    demo = content["datasets"]["demo"]
    demo["source"]["textures"] |= {"train": N_TRAIN, "test": N_TEST}
    demo["captioner"] |= {"engine": "transformers", "max_new_tokens": 8}
    demo["finetune"] |= {"epochs": 1, "batch_size": 20, "warmup_steps": 1}


@pytest.fixture(scope="session")
def finished(new_checkout):
    """A checkout in which the shrunken demo has run from its textures to its table."""
    checkout = new_checkout("finished")
    where = checkout.run("python", "-c", "import latteclip; print(latteclip.__file__)")
    assert where.stdout.strip() == str(checkout.root / "latteclip" / "__init__.py")
    edit(checkout, DEMO, shrink)
    run = checkout.snakemake("--config", "seeds=1")
    assert run.returncode == 0, run.stdout
    return checkout
