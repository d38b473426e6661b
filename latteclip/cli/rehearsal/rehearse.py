"""A rehearsal of a run in five minutes at most: loader, training step, captioner, and an estimate.

Each part is a process of its own with a share of the time; what an earlier one leaves of its own
falls to the last. Models are not downloaded, and nothing is left behind. Without a GPU the demo's
models stand in for those of the configuration.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latteclip.captions.engines.base import OWN
from latteclip.cli.doctor import Check, Finding
from latteclip.cli.rehearsal import bounded
from latteclip.cli.rehearsal.job import ERROR, RESULT, Job, trained_method
from latteclip.cli.rehearsal.outlook import outlook
from latteclip.config import layers
from latteclip.config.configuration import Configuration, as_json
from latteclip.core.signals import ending_in_order

# Seconds of each part, in order. With what ending them may take they are five minutes.
SHARES = {"loader": 35.0, "training": 65.0, "captioner": 185.0}
STAND_IN, LOG = "demo", "log"
# What to do where a part says nothing of its own.
ADVICE = {
    "loader": "lower threads.finetune, or give the job more main memory",
    "training": "set compute.micro_batch, lower finetune.batch_size, or give the job more memory",
    "captioner": "lower captioner.batch_size or captioner.max_model_len, or give the job more "
    "memory",
}
LOOK = "`latteclip --debug doctor --gpu` shows all that the part said"


@contextlib.contextmanager
def rehearsal(
    pairs: Sequence[str], files: Sequence[str], *, tell_all: bool
) -> Iterator[dict[str, Check]]:
    """The checks of a rehearsal, in order.

    Args:
        pairs: KEY=VALUE over the configuration, as snakemake's --config takes them.
        files: configuration files, as its --configfile takes them.
        tell_all: whether stderr gets all that a failed part said.

    Raises:
        UserError: the configuration is not right.
    """
    given = layers.given(pairs, files)
    configuration = Configuration(layers.defaults(), given)
    options = [
        *(["--configfile", *files] if files else []),
        *(["--config", *pairs] if pairs else []),
    ]
    with (
        ending_in_order("A rehearsal keeps nothing."),
        tempfile.TemporaryDirectory(prefix="latteclip-", ignore_cleanup_errors=True) as folder,
    ):
        job = _job(configuration, given, shlex.join(options))
        yield Rehearsal(configuration, job, folder, tell_all).checks()


def _job(configuration: Configuration, given: dict[str, Any], options: str) -> Job:
    """The configured models where there is a GPU for them, or else the demo's."""
    dataset = configuration.datasets[0]
    if has_gpu():
        return Job(dataset, "cuda", given, options=options)
    if "textures" in configuration.dataset(dataset)["source"]:
        return Job(dataset, "cpu", given, options=options)
    return Job(STAND_IN, "cpu", {"dataset": STAND_IN}, stands_in=True)


def has_gpu() -> bool:
    """Whether NVIDIA's driver lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:  # the check of the GPU says so
        return False
    return listed.returncode == 0 and bool(listed.stdout.strip())


@dataclass
class Rehearsal:
    """The parts, and what they measured so far."""

    configuration: Configuration  # what is estimated
    job: Job  # what is rehearsed
    folder: str
    tell_all: bool
    left: float = field(default_factory=lambda: sum(SHARES.values()))  # seconds
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    def checks(self) -> dict[str, Check]:
        """What doctor runs."""
        return {
            "rehearsal": self.scope,
            "loader": self.loader,
            "training": self.training,
            "captioner": self.captioner,
            "estimate": lambda: outlook(self.configuration, self.job, self.measured),
        }

    def scope(self) -> Iterator[Finding]:
        """What is rehearsed, and what cannot be seen here."""
        minutes = (sum(SHARES.values()) + 2 * bounded.GRACE * len(SHARES)) / 60
        yield Finding("ok", f"at most {minutes:.0f} minutes, with the models of {self.job.dataset}")
        names = self.configuration.datasets
        if self.job.device == "cpu":
            yield Finding(
                "note",
                f"no GPU here: neither CUDA nor a card's memory and speed are seen{self._unseen()}",
                "rehearse again on the machine of the run",
            )
        others = [name for name in names[1:] if self._has_other_models(name)]
        if others and not self.job.stands_in:
            yield Finding("note", f"not rehearsed are the models of {', '.join(others)}")

    def _unseen(self) -> str:
        """The models for which others stand in."""
        if not self.job.stands_in:
            return ""
        first = self.configuration.datasets[0]
        clip, captioner = (
            self.configuration.section(kind, first)["model"] for kind in ("clip", "captioner")
        )
        return f", nor {clip} and {captioner}, for which {STAND_IN}'s models stand in"

    def _has_other_models(self, dataset: str) -> bool:
        return any(
            self.configuration.section(kind, dataset)
            != self.configuration.section(kind, self.job.dataset)
            for kind in ("clip", "captioner")
        )

    def loader(self) -> Iterator[Finding]:
        """How fast images come."""
        yield self._part("loader")

    def training(self) -> Iterator[Finding]:
        """How fast they are trained on."""
        if trained_method(self.job.configuration()) is None:
            yield Finding("note", "no method that is asked for trains")
        else:
            yield self._part("training")

    def captioner(self) -> Iterator[Finding]:
        """Whether the captioner starts, and how fast it writes."""
        configuration, dataset = self.job.configuration(), self.job.dataset
        if configuration.section("captioner", dataset)["engine"] == OWN:
            yield Finding("note", "captions are your own")
        elif configuration.caption_kinds(dataset) or configuration.scores_classes(dataset):
            yield self._part("captioner")
        else:
            yield Finding("note", "no method that is asked for has captions")

    def _part(self, part: str) -> Finding:
        """What a part says that it measured, or what went wrong with it."""
        folder = Path(self.folder, part)
        folder.mkdir()
        later = list(SHARES)[list(SHARES).index(part) + 1 :]
        seconds = self.left - sum(SHARES[name] for name in later)
        began = time.monotonic()
        status = self._run(part, folder, seconds)
        taken = time.monotonic() - began
        self.left -= min(seconds, taken)
        said = (folder / LOG).read_text(encoding="utf-8", errors="replace")
        result = folder / RESULT
        found = json.loads(result.read_bytes()) if result.is_file() else {}
        shutil.rmtree(folder, ignore_errors=True)
        if found and ERROR not in found:
            self.measured[part] = {**found, "taken": taken}
            return Finding("ok", found["text"])
        if self.tell_all:
            print(said, file=sys.stderr)
        return problem(part, status, seconds, found.get(ERROR), said)

    def _run(self, part: str, folder: Path, seconds: float) -> int | None:
        """The exit status of a part's process; None where its time was over."""
        command = [sys.executable, "-m", "latteclip.cli.rehearsal.parts", part, str(folder)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return bounded.run(
            [*command, as_json(asdict(self.job))], seconds, folder / LOG, environment
        )


def problem(part: str, status: int | None, seconds: float, error: str | None, said: str) -> Finding:
    """Why a part failed, and what to do.

    Args:
        part: its name.
        status: of its process; None: its time was over.
        seconds: that it had.
        error: its own word.
        said: its log.
    """
    if error is not None:  # which says what to do
        return Finding("warning", error.rstrip("."))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = f" (it last said: {lines[-1][:200]})" if lines else ""
    if status is None:
        again = "a second start is often faster, with files in memory and kernels compiled"
        return Finding("warning", f"did not finish in {seconds:.0f} s{last}", f"{again}; {LOOK}")
    if status < 0:
        return Finding("warning", f"was killed by signal {-status}{last}", ADVICE[part])
    return Finding("warning", f"ended with status {status}{last}", LOOK)
