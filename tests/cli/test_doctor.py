import pytest

from latteclip.cli import doctor, main
from latteclip.core.errors import UserError


@pytest.mark.parametrize("error", [UserError("gone"), ValueError("no JSON")])
def test_a_broken_check_hides_no_other(monkeypatch, capsys, error):
    def broken():
        yield "ok", "begun"
        raise error

    def note():
        yield "note", "text; advice"

    monkeypatch.setattr(doctor, "CHECKS", {"first": broken, "second": note})
    assert main.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning ") and lines[1].startswith("note ")
    monkeypatch.setattr(doctor, "CHECKS", {"one": note})
    assert main.main(["doctor"]) == 0  # notes are no failure
