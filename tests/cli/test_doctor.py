import functools

import pytest
from support.servers import decisions, server  # noqa: F401

from latteclip.cli import doctor, main
from latteclip.core.errors import UserError


def levels(check):
    return [level for level, _ in doctor.findings(check)]


def test_the_server_of_an_engine_is_looked_for(decisions, monkeypatch):  # noqa: F811
    asks = functools.partial(
        doctor.check_captioner, ["captioner={'engine': 'decisions'}"], []
    )
    assert levels(asks) == ["ok"]
    monkeypatch.setenv("DECISIONS_API_KEY", "a wrong key")
    decisions.list_models = lambda: (401, {}, {})
    ((level, text),) = doctor.findings(asks)
    assert level == "warning" and "401" in text
    assert "DECISIONS_API_KEY" in text and "demo" in text
    del decisions.list_models
    monkeypatch.delenv("DECISIONS_API_KEY")
    assert levels(asks) == ["ok"]
    monkeypatch.setenv("DECISIONS_BASE_URL", "http://127.0.0.1:9")
    assert levels(asks) == ["warning"]
    monkeypatch.delenv("DECISIONS_BASE_URL")
    assert "export DECISIONS_BASE_URL" in doctor.findings(asks)[0][1]


ELSEWHERE = {
    "missing": (404, {}, {}),
    "an error": (200, {}, {"error": "Unexpected endpoint"}),
    "a page": (200, {}, b"<html>"),
    "a redirection": (307, {"Location": "/login"}, {}),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_address_without_v1_is_corrected(server, monkeypatch, name):  # noqa: F811
    server.elsewhere = ELSEWHERE[name]
    given = ["captioner={'engine': 'openai'}"]
    asks = functools.partial(doctor.check_captioner, given, [])
    assert levels(asks) == ["ok"]
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.removesuffix("/v1"))
    ((level, text),) = doctor.findings(asks)
    assert level == "warning" and f"export OPENAI_BASE_URL={server.url}" in text


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


@pytest.mark.parametrize(
    ("capability", "levels"),
    [("7.5", ["ok", "note"]), ("8.0", ["ok"]), ("12.0", ["ok"]), ("[N/A]", ["ok"])],
)
def test_a_card_without_bf16_is_told_what_to_set(monkeypatch, capability, levels):
    card = ["Tesla T4", "15360", "550.54", capability]
    monkeypatch.setattr(doctor.devices, "query", lambda fields: [card])
    monkeypatch.setattr(doctor.devices, "missing_compiler", lambda: None)
    found = doctor.findings(doctor.gpu)
    assert [level for level, _ in found] == levels
    assert ("'precision': 'fp16'" in found[-1][1]) == (len(levels) == 2)
