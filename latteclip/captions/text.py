"""Texts of captions: cleaned answers, mentions of classes, and who wrote them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_TOKENS = re.compile(r"<\|?/?(?:s|pad|unk|eos|bos|im_start|im_end|endoftext|eot_id)\|?>", re.I)
_LABEL = re.compile(r"^(?:assistant|caption|description|answer)\s*:\s*", re.I)
_CONSENT = re.compile(r"^(?:sure|certainly|of course|absolutely|okay|ok)\s*[!,.:]\s*(?=\S)", re.I)
_PREFACE = re.compile(
    r"^here(?:['\u2019]s| is| are| it is)\b[^.!?\"\u201c]{0,100}?:\s*(?=\S)", re.I
)
_CURLY = (("\u201c", "\u201d"), ("\u2018", "\u2019"))
_QUOTES = (*((mark, mark) for mark in ('"', "'", "**", "*", "`")), *_CURLY)


def clean(text: str) -> str:
    """Return the caption in a model's answer; it may be empty.

    The rules, in order, until none applies any more:
    1. White space and control characters, line breaks included, become single spaces. Half a
       character at the end, where the answer was cut, goes.
    2. Special tokens of chat templates that were left in the text go.
    3. A leading label goes: "Assistant:", "Caption:", "Description:", "Answer:".
    4. A leading preface goes: "Sure, here is a description of the photo:", "Certainly!".
    5. Quotes and asterisks around the whole text go.
    """
    text = " ".join(_TOKENS.sub(" ", _CONTROL.sub(" ", text)).rstrip("\ufffd").split())
    while (shorter := _strip_once(text)) != text:
        text = shorter
    return text


def _strip_once(text: str) -> str:
    for rule in (_LABEL, _CONSENT, _PREFACE):
        text = rule.sub("", text)
    for left, right in _QUOTES:
        inner = text[len(left) : len(text) - len(right)]
        if text == left + inner + right and left not in inner and right not in inner:
            return inner.strip()
    return text


def mentions(classnames: Sequence[str]) -> Callable[[str], bool]:
    """Return a test whether a text has any of the class names as whole words, in any case.

    It is the one definition behind every share of captions that name a class.
    """
    pattern = re.compile(rf"(?<!\w){_any_of(classnames)}(?!\w)", re.IGNORECASE)
    return lambda text: pattern.search(text) is not None


def _any_of(names: Sequence[str]) -> str:
    """Return a regular expression of all names that has their common beginnings only once.

    If the names merely stood side by side, all thousand would be tried at every word of a caption.
    """
    rests: dict[str, list[str]] = {}
    for name in filter(None, names):
        rests.setdefault(name[0], []).append(name[1:])
    branches = [re.escape(first) + _any_of(rest) for first, rest in rests.items()]
    if "" in names:  # one of them ends here
        branches.append("")
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def user_file_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the user's file that a CAPTIONS table was made from; None: a model wrote it."""
    captioner = metadata.get("captioner", {})
    if captioner.get("engine") != "file":
        return None
    return str(captioner["groups_file" if "groups" in metadata else "images_file"])


def model_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the model that wrote the captions of a CAPTIONS table; None: the user did."""
    return None if user_file_of(metadata) else metadata.get("captioner", {}).get("model")
