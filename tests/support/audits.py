"""Audits of made results, and the process that serves one."""

import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from support import warm
from support.made_results import Results

from latteclip.audit.audit import AuditSession
from latteclip.core import tables
from latteclip.core.answers import Answer
from latteclip.core.tables import ClassesMetadata


@contextmanager
def running(server):
    """A server of pages, while a thread serves."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def made_audit(folder, *, n_test=120):
    """Made results of zero-shot, FLYP and LatteCLIP without labels, learned from all images."""
    results = Results(Path(folder), n_test=n_test, labelled=False)
    for run in results.runs:
        write_train_predictions(results, f"{run.method}/seed{run.seed}", [])
    return results


def write_train_predictions(results, run, image_ids, shift=0):
    classes = (np.arange(len(image_ids), dtype=np.int32) + shift) % 7
    path = results.folder / run / "train_predictions.parquet"
    columns = {"image_id": pa.array(image_ids, pa.string()), "prediction": classes}
    metadata = ClassesMetadata(results.classnames)
    tables.write(path, columns, tables.TRAIN_PREDICTIONS, metadata)


def answer(session: AuditSession, *answers: Answer):
    session.file.update({one.image_id: one for one in answers})


def answer_next(session: AuditSession, n, label_of=None, kind="class"):
    """Answer the next n questions; where a class is named, by `label_of(image_id)`."""
    saved, names = session.answers(), session.file.classnames
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
