"""From what a model wrote to a caption.

The rules, in order, until none applies any more:
1. White space and control characters, line breaks included, become single spaces; half a character
   at the end, where the answer was cut, goes.
2. Special tokens of chat templates that were left in the text go.
3. A leading label goes: "Assistant:", "Caption:", "Description:", "Answer:".
4. A leading preface goes: "Sure, here is a description of the photo:", "Certainly!", "Here's ...:".
5. Quotes and asterisks around the whole text go.
"""

import re

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
    """The caption in a model's answer; may be empty."""
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
