"""Reads the text that AUTOMATIC1111's web UI, ComfyUI's savers and this daemon write into their PNGs
(weave/protocol/infotext.py). The text is untrusted."""

import contextlib
import json
import math
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from weave.protocol.infotext import SAMPLERS, SCHEDULES
from weave.protocol.loras import RequestedLora
from weave.protocol.parameters import Enlarge
from weave.protocol.text import is_model_id

MAX_INFOTEXT_BYTES = 64 * 1024
_NEGATIVE = "Negative prompt:"
_LORA = re.compile(r" ?<lora:([^:<>]{1,100}):([^:<>]{1,20})(?::[^<>]{0,100})?>")
_MAX_LINES_AFTER = 8
# Field, parameter, and whether it is a whole number.
_NUMBERS = (
    ("Steps", "steps", True),
    ("CFG scale", "cfg_scale", False),
    ("Seed", "seed", True),
    ("Denoising strength", "strength", False),
    ("Masked area padding", "mask_padding", True),
)
# Other programs' names of samplers, in lower case.
_ALIASES = {
    "euler_ancestral": "euler a",
    "euler_a": "euler a",
    "dpmpp_2m": "dpm++ 2m",
    "uni_pc": "unipc",
    "pndm": "plms",
}
# Schedules that mean what our scheduler does anyway.
_PLAIN = ("", "automatic", "uniform", "normal", "simple")
# What the web UI uses for "Automatic".
_AUTOMATIC = {"dpm++ 2m": "karras"}
_WITHOUT_EFFECT = {
    "Model hash",
    "Version",
    "Lora hashes",
    "TI hashes",
    "VAE hash",
    "Hires upscaler",
    "Inpaint area",
    "Hashes",
}


class BadInfotext(Exception):
    """The message names the field."""


class Infotext(NamedTuple):
    """`values` are parameters of a request, as far as the text has them. A `strength` means that there was an image,
    which the text does not identify. `schedulers` are those that the sampler may mean: which one depends on the model.
    `ignored` are fields that were not used."""

    values: dict[str, Any]
    schedulers: tuple[str, ...]
    ignored: tuple[str, ...]


def read_infotext(text: str, given: Collection[str] = ()) -> Infotext:
    """`given` are parameters whose values are not read, since others replace them. Raises BadInfotext."""
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_INFOTEXT_BYTES:
        raise BadInfotext(f"it has {size} bytes, more than {MAX_INFOTEXT_BYTES}")
    prompts, fields = _split(text)
    prompt, negative_prompt = _prompts(prompts)
    prompt, loras = _loras(prompt, wanted="loras" not in given)
    values: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt, "loras": loras}
    values |= _enlarge(fields)
    for field, name, whole in _NUMBERS:
        if field in fields:
            values[name] = _number(field, fields.pop(field), whole=whole)
    if "Size" in fields:
        values["width"], values["height"] = _size(fields.pop("Size"))
    sampler, schedule = fields.pop("Sampler", None), fields.pop("Schedule type", "")
    schedulers = () if sampler is None or "scheduler" in given else _schedulers(sampler, schedule)
    ignored = tuple(name for name in fields if name not in _WITHOUT_EFFECT)
    return Infotext({name: values[name] for name in values if name not in given}, schedulers, ignored)


def _split(text: str) -> tuple[str, dict[str, str]]:
    """The prompts, and the fields of the line below them. Other programs may add lines after that one."""
    lines = text.split("\n")
    for at in range(len(lines) - 1, max(len(lines) - 1 - _MAX_LINES_AFTER, -1), -1):
        fields = dict(_fields(lines[at].strip()))
        if "Steps" in fields:
            return "\n".join(lines[:at]), fields
    raise BadInfotext("it does not end with a line of fields that has Steps")


def _fields(line: str) -> Iterator[tuple[str, str]]:
    """`Name: value, Name: "quoted, value"`, up to the first part of the line that is not a field."""
    at, decoder = 0, json.JSONDecoder()
    while at < len(line):
        name, separator, _ = line[at : at + 64].partition(":")
        if not separator or "," in name or not name.strip().isprintable():
            return
        at += len(name) + 1
        while line.startswith(" ", at):
            at += 1
        after = at
        if line.startswith(('"', "{", "["), at):
            with contextlib.suppress(ValueError, RecursionError):
                _, after = decoder.raw_decode(line, at)
        end = line.find(",", after)
        value = line[at : end if end >= 0 else len(line)].strip()
        yield name.strip(), _unquoted(value)
        if end < 0:
            return
        at = end + 1


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        with contextlib.suppress(ValueError):
            return str(json.loads(value))
    return value


def _prompts(text: str) -> tuple[str, str]:
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(_NEGATIVE):
            negative = "\n".join([line.removeprefix(_NEGATIVE).removeprefix(" "), *lines[number + 1 :]])
            return "\n".join(lines[:number]), negative
    return text, ""


def _loras(prompt: str, *, wanted: bool) -> tuple[str, tuple[RequestedLora, ...]]:
    loras = []
    for name, weight in _LORA.findall(prompt) if wanted else ():
        if not is_model_id(name.lower()):
            text = f"its LoRA {name!r} has a name that no LoRA of the daemon can have"
            raise BadInfotext(f"{text}; --set loras=[] leaves it out")
        loras.append(RequestedLora(name.lower(), _number(f"the weight of the LoRA {name}", weight)))
    return _LORA.sub("", prompt), tuple(loras)


def _enlarge(fields: dict[str, str]) -> dict[str, Any]:
    """A strength is that of a second pass, or else of an image to start from. Removes the fields that it uses."""
    if "Hires upscale" not in fields:
        return {}
    strength = {"strength": fields.pop("Denoising strength")} if "Denoising strength" in fields else {}
    scale = _number("Hires upscale", fields.pop("Hires upscale"))
    return {"enlarge": Enlarge(scale=scale, **{k: _number("Denoising strength", v) for k, v in strength.items()})}


def _schedulers(sampler: str, schedule: str) -> tuple[str, ...]:
    known: dict[str, list[str]] = {}
    for ours, theirs in SAMPLERS.items():
        known.setdefault(theirs.lower(), []).append(ours)
    name, spacing = sampler.lower(), schedule.lower()
    for suffix in SCHEDULES:  # as in older versions: "DPM++ 2M Karras", and in others "dpmpp_2m_karras"
        if name.endswith((f" {suffix}", f"_{suffix}")):
            name, spacing = name[: -len(suffix) - 1], suffix
    name = _ALIASES.get(name, name)
    if spacing == "automatic":
        spacing = _AUTOMATIC.get(name, "")
    if name not in known:
        text = f"its Sampler is {sampler[:60]!r}, which the daemon does not have"
        raise BadInfotext(f"{text}; --set scheduler=NAME picks one")
    if spacing in _PLAIN:
        return tuple(known[name])
    if spacing not in SCHEDULES:
        text = f"its Schedule type is {schedule[:60]!r}, which the daemon does not have"
        raise BadInfotext(f"{text}; --set scheduler=NAME picks one")
    return tuple(ours if ours.startswith("edm_") else f"{ours}_{spacing}" for ours in known[name])


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return _number("Size", width, whole=True), _number("Size", height, whole=True)


def _number(field: str, text: object, *, whole: bool = False) -> Any:
    try:
        value = (int if whole else float)(text) if isinstance(text, str) and len(text) <= 32 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInfotext(f"its {field} is {str(text)[:40]!r}; it must be a {'whole ' if whole else ''}number")
    return value
