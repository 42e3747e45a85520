"""How an image was generated, from the texts of its PNG: those of this daemon, or else the text of AUTOMATIC1111's web
UI. The file is untrusted."""

import re
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from weave.protocol.bounds import MAX_SEED
from weave.protocol.errors import UNDECODABLE
from weave.protocol.infotext import INFOTEXT
from weave.protocol.inputs import InputImage, RequestedControl
from weave.protocol.parameters import PARAMETERS, Enlarge, choices_of, type_of
from weave.protocol.text import is_model_id
from weave.weavectl.infotext import BadInfotext, read_infotext

_SHOWN = 60
# Their images are recognised by their digests; with another image it is another request.
_INPUTS = ("image", "mask", "control", "references")
_IN_PNG = {name for name, parameter in PARAMETERS.items() if parameter.in_png}
SETTABLE = tuple(name for name in PARAMETERS if name in _IN_PNG and name not in _INPUTS)
# In every PNG from the daemon, of any version.
_REQUIRED = ("prompt", "model", "width", "height", "steps", "cfg_scale", "seed", "scheduler")
_OTHERS = {"Software", "tokens", "inputs", "pass", INFOTEXT}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORDS = {
    int: "a whole number",
    float: "a number",
    tuple[str, ...]: "a JSON list of strings",
    Enlarge: 'JSON such as {"scale":2.0,"strength":0.5}',
}


class BadRecipe(Exception):
    """The message names the text or the setting."""


class Input(NamedTuple):
    """An image that the original was generated from, for the parameter `field`. Without a `digest` it can be any
    image: the text did not identify it."""

    field: str
    size: InputImage | None
    digest: str | None


class Recipe(NamedTuple):
    """`values` are the parameters, without images. `inputs` are in the order of inputs_of(); `control` are the
    ControlNets that some of them are for. `schedulers`, if there are any, are those that the text may mean. `images`
    are generated, and the one with the number `only` is the original."""

    values: dict[str, Any]
    inputs: tuple[Input, ...] = ()
    control: tuple[RequestedControl, ...] = ()
    schedulers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    images: int = 1
    only: int = 0


class _Pass(Struct, frozen=True, forbid_unknown_fields=True):
    seed: int
    images: int


def recipe_of(texts: dict[str, str], settings: dict[str, str]) -> Recipe:
    """`settings` replace values of the texts; "" takes the default. Raises BadRecipe."""
    changed = {name: _value(name, text, f"--set {name}") for name, text in settings.items() if text}
    if texts.get("Software", "").startswith("weave-compute ") and "prompt" in texts:
        recipe = _own(texts, settings)
    elif INFOTEXT in texts:
        try:
            recipe = _of_infotext(texts[INFOTEXT], settings)
        except BadInfotext as error:
            raise BadRecipe(f"its text {INFOTEXT!r}: {error}") from None
    else:
        raise BadRecipe(f"it has neither this daemon's texts nor {INFOTEXT!r}, so nothing says how it was generated")
    kept = {name: value for name, value in recipe.values.items() if name not in settings}
    return recipe._replace(values=kept | changed)


def _own(texts: dict[str, str], settings: dict[str, str]) -> Recipe:
    for name in _REQUIRED:
        if name not in texts:
            raise BadRecipe(f"it has no text {name!r}")
    values = {
        name: _value(name, texts[name], f"its text {name!r}") for name in PARAMETERS if name in _IN_PNG & set(texts)
    }
    if not is_model_id(values["model"]):
        raise BadRecipe(f"its text 'model' is {values['model'][:_SHOWN]!r}, which no model can have as its ID")
    control = values.pop("control", ())
    announced: list[tuple[str, InputImage]] = [
        (field, values.pop(field)) for field in ("image", "mask") if field in values
    ]
    announced += [("control", one.image) for one in control]
    announced += [("references", one) for one in values.pop("references", ())]
    digests = _digests(texts.get("inputs", "[]"), len(announced))
    inputs = tuple(Input(field, size, digest) for (field, size), digest in zip(announced, digests, strict=True))
    ignored = tuple(name for name in texts if name not in _IN_PNG | _OTHERS)
    recipe = Recipe(values, inputs, control, ignored=ignored)
    # An image was one of several in its pass; with another seed or batch it is generated alone.
    if "pass" not in texts or settings.keys() & {"seed", "batch"}:
        values.pop("batch", None)
        return recipe
    together = _decoded(texts["pass"], _Pass, "its text 'pass'", 'JSON such as {"seed":1,"images":2}')
    only = (values["seed"] - together.seed) & MAX_SEED
    if not only < together.images <= values.get("batch", 1):
        raise BadRecipe("its texts 'pass', 'seed' and 'batch' contradict each other")
    values["seed"] = together.seed
    return recipe._replace(images=together.images, only=only)


def _of_infotext(text: str, settings: dict[str, str]) -> Recipe:
    found = read_infotext(text, settings)
    inputs = (Input("image", None, None), Input("mask", None, None)) if "strength" in found.values else ()
    return Recipe(found.values, inputs, schedulers=found.schedulers, ignored=found.ignored)


def _digests(text: str, images: int) -> tuple[str, ...]:
    digests: tuple[str, ...] = _decoded(text, tuple[str, ...], "its text 'inputs'", "a JSON list of SHA-256 digests")
    if not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise BadRecipe(f"its text 'inputs' is {text[:_SHOWN]!r}; it must be a JSON list of SHA-256 digests")
    if len(digests) != images:
        raise BadRecipe(f"its text 'inputs' has {len(digests)} digests; it had {images} images")
    return digests


def _value(name: str, text: str, shown: str) -> Any:
    """As the texts of a PNG have them: a string as itself, everything else as JSON."""
    kind, choices = type_of(name), choices_of(name)
    if choices and text not in choices:
        raise BadRecipe(f"{shown} is {text[:_SHOWN]!r}; it must be one of {', '.join(choices)}")
    return text if choices or kind is str else _decoded(text, kind, shown, _WORDS.get(kind, "JSON as in a request"))


def _decoded(text: str, kind: Any, shown: str, wanted: str) -> Any:
    try:
        return msgspec.json.decode(text.encode(), type=kind)
    except (*UNDECODABLE, UnicodeEncodeError):
        raise BadRecipe(f"{shown} is {text[:_SHOWN]!r}; it must be {wanted}") from None
