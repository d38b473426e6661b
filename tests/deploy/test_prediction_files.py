import contextlib
import io
import os
import sys

from latteclip.deploy.prediction_files import Prediction, writing


def test_a_terminal_is_told_nothing_that_it_would_obey(monkeypatch):
    """But a file and a pipe get the names as they are."""
    name = "a\x1b]0;title\x07.png"
    rows = [Prediction(name, [0], ["dots"], [0.5], [0.9])]
    reading, writing_end = os.openpty()
    with os.fdopen(writing_end, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        with writing(None, 1) as add:
            add(rows)
    said = ""
    with contextlib.suppress(OSError):  # which says that all is read
        while part := os.read(reading, 10_000):
            said += part.decode()
    os.close(reading)
    assert r"a\x1b]0;title\x07.png,dots,0.900000,0.500000" in said
    assert "\x1b" not in said
    pipe = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", pipe)
        with writing(None, 1) as add:
            add(rows)
    assert name in pipe.getvalue()
