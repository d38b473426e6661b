import pytest

from latteclip.core.terminal import for_terminal, one_line, printable

KEY = "sk-secret/01 23+45".replace(" ", "")


@pytest.fixture
def secrets(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_token_01")


def test_what_a_terminal_would_obey_is_spelt_out():
    assert printable("a\x1b[2Jb\x07\r\x9b\x00") == r"a\x1b[2Jb\x07\x0d\x9b\x00".replace(
        r"\x0d", r"\r"
    )
    assert printable("\u202egnp.exe\udcff") == r"\u202egnp.exe\udcff"


def test_secrets_are_left_out(secrets):
    text = f"{{'Authorization': 'Bearer {KEY}'}} or {KEY}, hf_token_01!"
    assert for_terminal(text) == "{'Authorization': 'Bearer ***'} or ***, ***!"


def test_logins_are_left_out_even_where_the_environment_has_none(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert for_terminal("https://me:abc@host/v1") == "https://***@host/v1"
    assert for_terminal("authorization: bearer abc, x") == "authorization: bearer ***, x"
    assert for_terminal("https://host/v1?a=b@c") == "https://host/v1?a=b@c"


@pytest.mark.parametrize("key", ["", "a", "abc"])
def test_a_key_of_a_few_letters_takes_none_from_a_text(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert for_terminal("a abc cab") == "a abc cab"


def test_one_line_is_one_line_of_bounded_length(secrets):
    text = one_line(ValueError(f"a\n  b \x1b {KEY} {'x' * 1000}"))
    assert text.startswith(r"a b \x1b *** xxx")
    assert len(text) == 300
    assert one_line("short") == "short"
