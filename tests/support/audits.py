"""Audits of made results, and the process that serves one."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
from support import warm
from support.checkout import hear_interrupts
from support.made_results import Results
from support.tiny import ROOT

from latteclip.audit.audit import AuditSession
from latteclip.core import tables
from latteclip.core.tables import ClassesMetadata
from latteclip.labels.answers import Answer


def made_audit(folder, *, n_test=120, **options):
    """Made results of zero-shot, FLYP and LatteCLIP without labels, learned from all images."""
    results = Results(Path(folder), n_test=n_test, labelled=False, **options)
    for run in results.runs:
        write_train_predictions(results, f"{run.method}/seed{run.seed}", [])
    return results


def write_train_predictions(results, run, image_ids):
    classes = np.arange(len(image_ids), dtype=np.int32) % 7
    path = results.folder / run / "train_predictions.parquet"
    columns = {"image_id": pa.array(image_ids, pa.string()), "prediction": classes}
    metadata = ClassesMetadata(results.classnames)
    tables.write(path, columns, tables.TRAIN_PREDICTIONS, metadata)


def answer(session: AuditSession, *answers: Answer):
    session.schema.update(session.path, {one.image_id: one for one in answers})


def answer_next(session: AuditSession, n, label_of=None, kind="class"):
    """Answer the next n questions; where a class is named, by `label_of(image_id)`."""
    saved, names = session.answers(), session.schema.classnames
    ids = [one.image_id for one in session.open_questions(saved)][:n]
    assert len(ids) == n
    answer(
        session,
        *(
            Answer(one, kind, names[label_of(one)] if kind == "class" else None)
            for one in ids
        ),
    )


def command(results, *options):
    """`latteclip audit` on made results, as a list of words."""
    return [warm.command("latteclip"), "audit", str(results.folder), *options]


class Served:
    """A process of `latteclip audit`, with the address of its page."""

    def __init__(self, results, *options):
        self.process = subprocess.Popen(
            command(results, "--no-browser", *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            preexec_fn=hear_interrupts,
        )
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", line):
                self.address, self.port, self.token = found[0], int(found[1]), found[2]
                return
        raise AssertionError(self.said)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def end(self, signal):
        """What the process still says, and its exit status, after a signal."""
        self.process.send_signal(signal)
        said, _ = self.process.communicate(timeout=60)
        return said, self.process.returncode
