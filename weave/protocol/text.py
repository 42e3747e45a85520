"""Untrusted text: which characters names and titles may have, and how other text is displayed.

Terminals interpret control characters (C0, DEL, C1), and bidirectional overrides make text look like other text. Each
receiver checks a message against these patterns itself, and does not rely on the sender's check.
"""

import json
import re
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

# msgspec searches for a pattern anywhere, and `$` would allow a newline at the end: hence \A and \Z.
MODEL_ID = r"\A[a-z0-9][a-z0-9._-]{0,63}\Z"
_NAME = r"\A[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}\Z"
LONGEST_TITLE = 256
# Control characters, line separators, directional marks and overrides, surrogates, and invisible characters.
_HIDDEN = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f"
)

ModelId: TypeAlias = Annotated[str, Meta(pattern=MODEL_ID)]
# The name of a family, scheduler, device, process or sandbox layer, or a version.
Name: TypeAlias = Annotated[str, Meta(pattern=_NAME)]
Title: TypeAlias = Annotated[str, Meta(pattern=rf"\A[^{_HIDDEN}]*\Z", max_length=LONGEST_TITLE)]
Device: TypeAlias = Annotated[str, Meta(pattern=r"\A(cpu|cuda(:[0-9]{1,4})?)\Z")]
Dtype: TypeAlias = Annotated[str, Meta(pattern=r"\A(float32|float16|bfloat16)\Z")]

_model_id = re.compile(MODEL_ID)
_hidden = re.compile(f"[{_HIDDEN}]")
_encoder = msgspec.json.Encoder()


def is_model_id(text: str) -> bool:
    """Whether `text` is a valid model ID."""
    return _model_id.search(text) is not None


def hidden_in(text: str) -> str | None:
    """The first character in `text` that a title must not have, in the form U+001B."""
    found = _hidden.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def visible(text: str) -> str:
    """`text` with every non-printable character escaped: \\x1b, \\u202e, \\udce9."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def json_line(value: Any) -> bytes:
    """JSON that is safe to display on a terminal. msgspec escapes only C0. Outside strings JSON is ASCII, so any other
    non-printable character is inside a string, where JSON has an escape for it."""
    try:
        text = _encoder.encode(value).decode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False, separators=(",", ":"))
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _json_escape(c) for c in text)
    return text.encode()


def _json_escape(character: str) -> str:
    """Done by hand: Python imports codecs as modules, which a sandboxed process cannot do."""
    number = ord(character)
    if number < 0x10000:
        return f"\\u{number:04x}"
    return f"\\u{0xD800 + (number - 0x10000 >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
