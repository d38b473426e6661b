"""The parts of a rehearsal, each a process of its own: what it measures is a file of JSON.

python -m latteclip.cli.rehearsal.parts PART FOLDER JOB

A part runs what a run would, on a few pictures, in FOLDER; JOB is a `Job` in JSON. It downloads
nothing.
"""

import importlib
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from latteclip.cli import log as logs
from latteclip.cli.rehearsal.job import ERROR, RESULT, Job
from latteclip.config import demands
from latteclip.core import gpus
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.settings import from_json

# The module of each part; its function has the part's name.
PARTS = {"loader": "learning", "training": "learning", "captioner": "captioning"}


def main(arguments: Iterable[str]) -> int:
    """Run a part and write what it measured, or the sentence that says why it could not."""
    name, folder, text = arguments
    logs.start(debug=False)
    job = from_json(Job, text)
    _claim(name, job)
    # All that the part and its libraries write for themselves is to go with the folder.
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        module = importlib.import_module(f"latteclip.cli.rehearsal.{PARTS[name]}")
        result = getattr(module, name)(job, Path(folder))
    except UserError as error:
        result = {ERROR: str(error)}
    write_json(Path(folder, RESULT), result)
    return 1 if ERROR in result else 0


def _claim(name: str, job: Job) -> None:
    """Take GPUs as a stage does: their locks are in the folder that all jobs share."""
    n = demands.captioner_gpus(job.configuration(), job.dataset) if name == "captioner" else 1
    if n and job.device == "cuda":
        gpus.claim(n)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
