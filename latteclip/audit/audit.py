"""`latteclip audit`: ask a person about images, offline too, and say what the answers tell."""

import contextlib
import logging
import webbrowser
from collections.abc import Iterator

import filelock

from latteclip.audit import score
from latteclip.audit.advice import MOST, steps
from latteclip.audit.answers import read_exported
from latteclip.audit.offline import write_offline
from latteclip.audit.server import AuditServer
from latteclip.audit.session import Session
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)


def begin(folder: str, split: str | None, budget: int) -> Session:
    """The audit of a dataset's results, as it stands; what limits it is said in the log.

    Raises:
        UserError: there is nothing to audit.
    """
    if not 1 <= budget <= MOST:
        raise UserError(f"--budget {budget} is no number of images between 1 and {MOST:,}.")
    session = Session(folder, split, budget)
    audited = session.audited
    if session.total < budget:
        log.warning(
            "The %s split has %d images that can be asked about, fewer than the budget of %d.",
            audited.split,
            session.total,
            budget,
        )
    if len(audited.candidates) == 1:
        log.warning(
            "%s is the only method that was run: its accuracy is estimated, and nothing compared.",
            audited.candidates[0].method,
        )
    elif (audited.predictions == audited.predictions[:, :1]).all():
        log.warning(
            "All %d methods say the same of every image: no answer can tell them apart, and only "
            "their common accuracy is estimated.",
            len(audited.candidates),
        )
    return session


def serve(session: Session, port: int, browser: bool) -> None:
    """Ask the questions on a page of this machine until Ctrl-C; then say what the answers tell.

    Raises:
        UserError: another server asks them already, or the port is in use.
    """
    _tell_vanished(session)
    with (
        _alone(session),
        AuditServer(session, port) as server,
        contextlib.suppress(KeyboardInterrupt),
    ):
        print(f"The audit's page: {server.address}", flush=True)
        print("Answers are kept one by one; Ctrl-C ends, the same command goes on.", flush=True)
        if browser and not webbrowser.open(server.address):
            log.warning("No browser could be opened: open the address yourself.")
        server.serve_forever()
    with contextlib.suppress(score.TooFewAnswersError):
        tell(session)


def take(session: Session, path: str) -> None:
    """Add the answers of an exported file to those that are kept; the first of an image stands."""
    with _alone(session):
        found = read_exported(path, session.asked)
        taken = session.take(found)
    log.info("Took %d answers from %s.", taken, path)
    if taken < len(found):
        log.warning("%d images had an answer already, which stands.", len(found) - taken)


def tell(session: Session) -> None:
    """Print what the answers say, and what to do next."""
    audit = session.score()
    print(score.table(audit))
    for step in steps(session.folder, audit):
        print(f"\n{step.text}", *([f"\n  {step.command}"] if step.command else []), sep="")


def offline(session: Session, output: str) -> None:
    """Write the questions as one HTML file."""
    _tell_vanished(session)
    write_offline(session, output)


@contextlib.contextmanager
def _alone(session: Session) -> Iterator[None]:
    """Nobody else writes answers in the meantime; a process that was killed holds nothing."""
    lock = filelock.FileLock(session.lock, timeout=0)
    try:
        with lock:
            session.read_answers()
            yield
    except filelock.Timeout:
        raise UserError(
            f"Another audit of {session.folder} is going on; answer on its page, or end it with "
            "Ctrl-C first."
        ) from None


def _tell_vanished(session: Session) -> None:
    gone = session.vanished()
    if gone:
        log.warning(
            "%d of the images that are asked about are not there, the first %s; run this in the "
            "folder that the workflow ran in, or say “cannot tell” of them.",
            len(gone),
            gone[0],
        )
