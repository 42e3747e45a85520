"""What a model's JSON files may say: known keys only, each with a value of its kind.

A key that a library acts on can choose code: `quantization_config` names a quantizer's class, `attn_implementation` a
kernel on the Hub, `auto_map` a Python file. So nothing is passed on that has no rule. The rules are listed with each
class (components.py, schedulers.py, families/), and a test compares them with the installed ones.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weave.models.files import ModelFilesRefused

_MAX_BYTES = 64 * 1024 * 1024
_SHOWN = 80
_MAX_ITEMS = 100_000  # trained_betas has one for each training step


class Kind(NamedTuple):
    """`words` completes "KEY is VALUE, expected ..."."""

    words: str
    fits: Callable[[Any], bool]


def _integers(low: int, high: int) -> Kind:
    return Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _numbers(low: float, high: float) -> Kind:
    return Kind(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high,
    )


# null, and lists of these, fit each kind too: what a class cannot do with them it says itself.
KINDS = {
    "size": _integers(1, 1 << 20),
    "side": _integers(1, 1024),
    "count": _integers(0, 1024),
    "token": _integers(-1, 1 << 20),
    "number": _numbers(-1e6, 1e6),
    "fraction": _numbers(0, 1),
    "flag": Kind("true or false", lambda value: type(value) is bool),
    "name": Kind(
        "a plain name", lambda value: type(value) is str and bool(re.fullmatch(r"[A-Za-z0-9_.+-]{1,64}", value))
    ),
    # The one infinity that diffusers itself writes.
    "clip": Kind(
        "a number or -Infinity",
        lambda value: type(value) in (int, float) and (value == -math.inf or abs(value) <= 1e6),
    ),
    "length": _numbers(1, 1e31),
    "text": Kind("text", lambda value: type(value) is str and len(value) <= 4096),
    "empty": Kind("an empty object", lambda value: value == {}),
    "tokens": Kind("a token", lambda value: _is_token(value) or _is_table_of_tokens(value)),
}


class Rules(NamedTuple):
    """`keys` maps what is passed on to its kind; what is in `ignored` may be there, and nobody reads it."""

    keys: Mapping[str, str]
    ignored: frozenset[str]


def rules(ignored: str = "", **keys: str) -> Rules:
    """Rules from words: one argument for each kind, with the keys of that kind."""
    of_kind = {key: kind for kind, names in keys.items() for key in names.split()}
    return Rules(of_kind, frozenset(ignored.split()))


def read_object(model: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` of the model. Raises ModelFilesRefused."""
    try:
        with open(model / name, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        found = json.loads(data, object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise ModelFilesRefused(f"{name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFilesRefused(f"{name}: no sound JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelFilesRefused(f"{name}: expected an object, found {shown(found)}")
    return found


def check_values(name: str, found: Mapping[str, Any], allowed: Rules) -> dict[str, Any]:
    """What may be passed on of the object `found` in the file `name`. Raises ModelFilesRefused."""
    for key, value in found.items():
        if key in allowed.ignored:
            continue
        if key not in allowed.keys:
            raise ModelFilesRefused(f"{name}: {shown(key)} is no key that is known here; remove it")
        kind = KINDS[allowed.keys[key]]
        if not _fits(value, kind):
            raise ModelFilesRefused(f"{name}: {key} is {shown(value)}, expected {kind.words}")
    # diffusers marks what was not in the file that it read: such values are the class's own defaults.
    defaults = found.get("_use_default_values")
    defaults = defaults if isinstance(defaults, list) else []
    return {key: value for key, value in found.items() if key in allowed.keys and key not in defaults}


def shown(value: object) -> str:
    """A foreign value for a message: one line, not long, nothing that a terminal acts on."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a list too deep
        return f"too large a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _fits(value: Any, kind: Kind, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < 3 and len(value) <= _MAX_ITEMS and all(_fits(item, kind, depth + 1) for item in value)
    return value is None or kind.fits(value)


def _is_token(value: Any) -> bool:
    """Text, or what transformers writes for an AddedToken."""
    if isinstance(value, str):
        return len(value) <= 4096
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return False
    flags = {key: item for key, item in value.items() if key not in ("content", "__type")}
    known = {"lstrip", "rstrip", "normalized", "single_word", "special"}
    return value.get("__type", "AddedToken") == "AddedToken" and all(
        key in known and type(item) is bool for key, item in flags.items()
    )


def _is_table_of_tokens(value: Any) -> bool:
    """`added_tokens_decoder`: tokens by their number."""
    return isinstance(value, dict) and all(
        key.isascii() and key.isdigit() and len(key) <= 7 and _is_token(token) for key, token in value.items()
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key comes twice")
    return table
