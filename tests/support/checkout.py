"""A copy of the repository in which Snakemake runs, and the demo in small."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from generate_textures import write_shards
from support import warm
from support.tiny import ROOT

from latteclip.audit.server import PageServer
from latteclip.cli import main

N_TRAIN, N_TEST = 60, 40
CONFIG, DEMO = "config/config.yaml", "config/datasets/demo.yaml"


def edit(checkout, file, change):
    """Change a YAML file of a checkout in place."""
    path = checkout.root / file
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def shrink(content):
    """The demo with few images and one epoch, and an engine that starts quickly."""
    demo = content["datasets"]["demo"]
    demo["split"]["counts"] |= {"train": N_TRAIN, "test": N_TEST}
    demo["captioner"] |= {"engine": "transformers", "max_new_tokens": 8}
    demo["finetune"] |= {"epochs": 1, "batch_size": 20, "warmup_steps": 1}


@dataclass
class Checkout:
    """A copy of the repository with few images, in which Snakemake runs on the copy's code."""

    root: Path
    environment: dict = field(default_factory=dict)  # beside that of the tests

    def __post_init__(self):
        if self.root.exists():
            return
        self.root.mkdir(parents=True)
        # With what Python compiled, which is good for copies as old as their originals; but for
        # files that another process is about to put there.
        hidden = shutil.ignore_patterns("*.pyc.*", "*.egg-info", "*.tar")
        for name in ("workflow", "config", "profiles", "latteclip", "envs"):
            shutil.copytree(ROOT / name, self.root / name, ignore=hidden)
        write_shards(self.root / "latteclip" / "demo" / "images", N_TRAIN, N_TEST)
        shutil.copy(ROOT / "Snakefile", self.root)
        (self.root / "README.md").write_text("The manual.\n")

    def start(self, *command, **options):
        """Start a command of the environment, with stdout and stderr together."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        options = {"cwd": self.root, "env": self.variables(), **streams, **options}
        return subprocess.Popen(list(map(str, command)), text=True, **options)

    def run(self, *command, **options):
        with self.start(*command, **options) as process:
            output, _ = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def copy(self, root):
        """Copy the checkout with its results, which Snakemake there takes for up to date."""
        shutil.copytree(self.root, root, symlinks=True)
        return Checkout(root)

    def snakemake(self, *arguments, cwd=None):
        """The same of `snakemake -j2` and its stages, by processes that have imported it."""
        return self._warm("snakemake", "-j2", *arguments, cwd=cwd)

    def ran(self, *arguments, **options):
        """The output of `snakemake`, which must succeed."""
        run = self.snakemake(*arguments, **options)
        assert run.returncode == 0, run.stdout
        return run.stdout

    def latteclip(self, *arguments, cwd=None):
        return self._warm("latteclip", *arguments, cwd=cwd)

    def _warm(self, script, *arguments, cwd=None):
        command, folder = list(map(str, arguments)), cwd or self.root
        status, output = warm.run(script, command, self.variables(), folder, stages=True)
        return subprocess.CompletedProcess(command, status, output)

    def log(self):
        """What Snakemake logged of the last run: a terminal gets few lines of it."""
        logs = (self.root / ".snakemake" / "log").glob("*.snakemake.log")
        return max(logs).read_text()

    def variables(self):
        """Of a command: the tests' own, and this copy's code."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **self.environment}
        return environment | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
            "PYTHONPATH": str(self.root),
        }


def hear_interrupts():
    """In a process to be: a suite that runs in the background would have it ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def printed(text):
    """The commands that a run or a command prints."""
    before, after = r"(?:^ *|: |[Rr]un |by )", r"(?:, then .+)?\.?$"
    return re.findall(rf"{before}((?:latteclip|snakemake) .+?){after}", text, re.M)


def run_printed(checkout, commands, monkeypatch, capfd, **values):
    """Run commands as they are printed, and those that they print; what each prints.

    Pages of questions are made, but not served, and a run is planned alone. `values` are of the
    words that stand for a value.
    """
    monkeypatch.setattr(PageServer, "serve_forever", lambda page: None)
    monkeypatch.setattr(webbrowser, "open", lambda address: None)
    monkeypatch.chdir(checkout.root)
    tried, waiting = {}, [*commands]
    for command in waiting:  # to which more are added
        if command in tried:
            continue
        program, *words = [values.get(word, word) for word in shlex.split(command)]
        if program == "snakemake":  # as it is in a folder with a Snakefile
            tried[command] = checkout.ran(*words, "--dry-run")
        else:
            assert main.main(words) == 0, command
            tried[command] = "\n".join(capfd.readouterr())
            waiting += printed(tried[command])
    return tried
