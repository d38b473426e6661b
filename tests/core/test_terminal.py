import base64

import pytest

from latteclip.core.terminal import holds_secret, one_line, printable, redacted

KEY = "sk-secret/01 23+45".replace(" ", "")


@pytest.fixture
def secrets(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:pass%2Fword@127.0.0.1:8000/v1")
    monkeypatch.setenv("HF_TOKEN", "hf_token_01")


def test_what_a_terminal_would_obey_is_spelt_out():
    assert printable("a\x1b[2Jb\x07\r\x9b\x00") == r"a\x1b[2Jb\x07\x0d\x9b\x00".replace(
        r"\x0d", r"\r"
    )
    assert printable("\u202egnp.exe\udcff") == r"\u202egnp.exe\udcff"


@pytest.mark.parametrize(
    "secret",
    [
        *(KEY, "sk-secret%2F0123%2B45", "hf_token_01", "pass/word", "pass%2Fword"),
        base64.b64encode(b"me:pass/word").decode(),
    ],
)
def test_secrets_are_left_out_however_they_are_written(secrets, secret):
    assert redacted(f"{{'Authorization': 'Bearer {secret}'}} or {secret}!").count("***") == 2
    assert secret not in redacted(f"no {secret}, {secret}")


def test_logins_are_left_out_even_where_the_environment_has_none(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert redacted("https://me:abc@host/v1") == "https://***@host/v1"
    assert redacted("authorization: bearer abc, x") == "authorization: bearer ***, x"
    assert redacted("https://host/v1?a=b@c") == "https://host/v1?a=b@c"


@pytest.mark.parametrize("key", ["", "a", "abc"])
def test_a_key_of_a_few_letters_takes_none_from_a_text(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert redacted("a abc cab") == "a abc cab"


def test_a_word_that_is_a_key_too_may_stand_in_a_caption(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "dotted")
    assert not holds_secret("a dotted cloth")
    monkeypatch.setenv("OPENAI_API_KEY", "dotted-0123")
    assert holds_secret("a dotted-0123 cloth")


def test_in_short_is_one_line_of_bounded_length(secrets):
    text = one_line(ValueError(f"a\n  b \x1b {KEY} {'x' * 1000}"))
    assert text.startswith(r"a b \x1b *** xxx")
    assert len(text) == 300
    assert one_line("short") == "short"
