"""Text that comes from somebody else: what names and titles may hold, and how anything else is shown.

A terminal obeys control characters (C0, DEL, C1), and bidirectional overrides make text look like other text. Whoever
receives a message checks it against these patterns itself: none relies on the sender's check.
"""

import json
import re
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

# msgspec searches, and `$` would allow a newline at the end.
MODEL_ID = r"\A[a-z0-9][a-z0-9._-]{0,63}\Z"
_NAME = r"\A[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}\Z"
LONGEST_TITLE = 256
# Controls, line separators, directional marks and overrides, surrogates, and characters that never show.
_HIDDEN = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f"
)

ModelId: TypeAlias = Annotated[str, Meta(pattern=MODEL_ID)]
# Of a family, a scheduler, a device, a process, a layer of the sandbox, a version.
Name: TypeAlias = Annotated[str, Meta(pattern=_NAME)]
Title: TypeAlias = Annotated[str, Meta(pattern=rf"\A[^{_HIDDEN}]*\Z", max_length=LONGEST_TITLE)]
Device: TypeAlias = Annotated[str, Meta(pattern=r"\A(cpu|cuda(:[0-9]{1,4})?)\Z")]
Dtype: TypeAlias = Annotated[str, Meta(pattern=r"\A(float32|float16|bfloat16)\Z")]

_model_id = re.compile(MODEL_ID)
_hidden = re.compile(f"[{_HIDDEN}]")
_encoder = msgspec.json.Encoder()


def is_model_id(text: str) -> bool:
    """Whether a model can have that ID."""
    return _model_id.search(text) is not None


def hidden_in(text: str) -> str | None:
    """The first character that a title may not have, as U+001B."""
    found = _hidden.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def visible(text: str) -> str:
    """`text` with every character that does not print as itself written as an escape: \\x1b, \\u202e, \\udce9."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def json_line(value: Any) -> bytes:
    """JSON that is safe to show on a terminal: msgspec escapes C0 alone. Outside a string JSON is ASCII, so whatever
    else does not print is in one, where JSON has an escape for it."""
    try:
        text = _encoder.encode(value).decode()
    except UnicodeEncodeError:  # a file's name that is not UTF-8
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False, separators=(",", ":"))
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _json_escape(c) for c in text)
    return text.encode()


def _json_escape(character: str) -> str:
    """By hand: a codec would be a module, which a process that is locked in can't import any more."""
    number = ord(character)
    if number < 0x10000:
        return f"\\u{number:04x}"
    return f"\\u{0xD800 + (number - 0x10000 >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
