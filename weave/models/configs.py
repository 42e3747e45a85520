"""What a model's JSON files may contain: known keys only, each with a value of its kind.

A key that a library acts on can choose code: `quantization_config` names a quantizer's class, `attn_implementation` a
kernel on the Hub, `auto_map` a Python file. So a key without a rule is refused. The rules are listed with each class
(components.py, schedulers.py, families/), and a test compares them with the installed classes.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from weave.models.faults import Checks
from weave.models.files import ModelFilesRefused, find_file

_MAX_BYTES = 64 * 1024 * 1024
_SHOWN = 80
_MAX_DEPTH = 3  # of lists in lists: transformer_layers_per_block has two levels
_MAX_ITEMS = 100_000  # trained_betas has one item per training step


class Kind(NamedTuple):
    """`words` completes "KEY is VALUE, expected ...". `fits` judges a value that is neither null nor a list."""

    words: str
    fits: Callable[[Any], bool]


def _integers(low: int, high: int) -> Kind:
    return Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _numbers(low: float, high: float) -> Kind:
    return Kind(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high,
    )


KINDS = {
    "size": _integers(1, 1 << 20),
    "side": _integers(1, 1024),
    "count": _integers(0, 1024),
    "token": _integers(-1, 1 << 20),
    "pixels": _integers(1, 1 << 26),
    "filter": _integers(0, 5),  # of Pillow's for resizing
    "number": _numbers(-1e6, 1e6),
    "positive": _numbers(1e-6, 1e4),
    "fraction": _numbers(0, 1),
    "flag": Kind("true or false", lambda value: type(value) is bool),
    "name": Kind(
        "a plain name", lambda value: type(value) is str and bool(re.fullmatch(r"[A-Za-z0-9_.+-]{1,64}", value))
    ),
    # -Infinity is the only infinity that diffusers itself writes.
    "clip": Kind(
        "a number or -Infinity",
        lambda value: type(value) in (int, float) and (value == -math.inf or abs(value) <= 1e6),
    ),
    "length": _numbers(1, 1e31),
    "period": _numbers(1, 1e9),
    "text": Kind("text", lambda value: type(value) is str and len(value) <= 4096),
    # Other types change their table with the prompt's length: one job would affect the next.
    "rope": Kind("'default', 'mrope' or 'axial'", lambda value: value in ("default", "mrope", "axial")),
    "spacing": Kind("'karras' or 'exponential'", lambda value: value in ("karras", "exponential")),
    "empty": Kind("an empty object", lambda value: value == {}),
    "tokens": Kind("a token", lambda value: _is_token(value) or _is_table_of_tokens(value)),
}


class Rule(NamedTuple):
    """The values that one key may have: of `kind` (one of KINDS), and null and lists of these only where allowed."""

    kind: str
    single: bool = True
    listed: bool = False
    null: bool = False

    @property
    def words(self) -> str:
        """Completes "KEY is VALUE, expected ..."."""
        where = "" if not self.listed else ", or a list of these" if self.single else ", in a list"
        return f"{KINDS[self.kind].words}{where}{', or null' * self.null}"

    def fits(self, value: Any, depth: int = 0) -> bool:
        """Whether the key may have this value."""
        if isinstance(value, list):
            fits = self.listed and depth < _MAX_DEPTH and len(value) <= _MAX_ITEMS
            return fits and all(self.fits(item, depth + 1) for item in value)
        if value is None:
            return self.null and depth == 0
        return (self.single or depth > 0) and KINDS[self.kind].fits(value)


class Rules(NamedTuple):
    """`keys` are passed on to the class, and so are objects with rules of their own. Keys in `ignored` are allowed, and
    never read."""

    keys: Mapping[str, Rule]
    ignored: frozenset[str]
    objects: Mapping[str, "Rules"] = MappingProxyType({})


def rules(ignored: str = "", *, objects: Mapping[str, Rules] = MappingProxyType({}), **keys: str) -> Rules:
    """Rules from words: one argument per kind, with the keys of that kind, which win over `ignored`.

    A suffix says what may replace a single value: `key*` a list of them, `key[]` only a list, and `?` at the end null.
    """
    of_key = {}
    for kind, words in keys.items():
        for word in words.split():
            shape = word.removesuffix("?")
            key = shape.removesuffix("*").removesuffix("[]")
            of_key[key] = Rule(kind, single=not shape.endswith("[]"), listed=key != shape, null=shape != word)
    return Rules(of_key, frozenset(ignored.split()) - of_key.keys(), objects)


def read_object(model: Path, name: str) -> dict[str, Any]:
    """The JSON object in the model's file `name`. Raises ModelFilesRefused."""
    try:
        with open(find_file(model, name), "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        found = json.loads(data, object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise ModelFilesRefused(f"{name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFilesRefused(f"{name}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelFilesRefused(f"{name}: expected an object, found {shown(found)}")
    return found


def check_values(name: str, found: Mapping[str, Any], allowed: Rules) -> Checks[dict[str, Any] | None]:
    """The part of the object `found`, from the file `name`, to pass on to the class; None if a value cannot be used."""
    usable = True
    objects = {}
    for key, value in found.items():
        if key in allowed.ignored:
            continue
        if key in allowed.objects:
            if value is not None:  # null is the same as none
                objects[key] = yield from _check_inner(f"{name}: {key}", value, allowed.objects[key])
            continue
        if key not in allowed.keys:
            yield f"{name}: {shown(key)} is not a known key; remove it"
        elif not allowed.keys[key].fits(value):
            yield f"{name}: {key} is {shown(value)}, expected {allowed.keys[key].words}"
            usable = False
    # diffusers lists the keys that were missing from the file it once read: their values are the class's defaults.
    defaults = found.get("_use_default_values")
    defaults = defaults if isinstance(defaults, list) else []
    sound = {key: value for key, value in found.items() if key in allowed.keys and key not in defaults}
    return sound | objects if usable and None not in objects.values() else None


def _check_inner(name: str, found: Any, allowed: Rules) -> Checks[dict[str, Any] | None]:
    if not isinstance(found, Mapping):
        yield f"{name} is {shown(found)}, expected an object or null"
        return None
    return (yield from check_values(name, found, allowed))


def shown(value: object) -> str:
    """An untrusted value for a message: one short line without control characters."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a list too deep
        return f"too large a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_token(value: Any) -> bool:
    """Text, or the object that transformers writes for an AddedToken."""
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
    """The value of `added_tokens_decoder`: tokens by their ID."""
    return isinstance(value, dict) and all(
        key.isascii() and key.isdigit() and len(key) <= 7 and _is_token(token) for key, token in value.items()
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate key")
    return table
