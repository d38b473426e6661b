import pytest

from latteclip.core.terminal import for_terminal, printable

KEY = "sk-secret/0123+45"


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_token_01")


def test_what_a_terminal_would_obey_is_spelt_out():
    assert printable("\u202egnp\udcff") == r"\u202egnp\udcff"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"Bearer {KEY} or {KEY}, hf_token_01!", "Bearer *** or ***, ***!"),
        ("https://host/v1?a=b@c", "https://host/v1?a=b@c"),
    ],
)
def test_secrets_and_logins_are_left_out(text, masked):
    assert for_terminal(text) == masked
