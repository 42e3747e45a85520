"""Writes what the declarations in weave/protocol/parameters.py say into the documents: the table of docs/protocol.md
and weavectl's options in docs/man/weavectl.1, each between its two markers."""

from pathlib import Path

from weave.protocol.bounds import FloatRange, Range
from weave.protocol.declaration import (
    Bound,
    Enlarged,
    InputSize,
    OfferedCache,
    OfferedControls,
    OfferedEmbeddings,
    OfferedLoras,
    OfferedScheduler,
    OfModel,
    Parameter,
    PromptLength,
    UpTo,
)
from weave.protocol.embeddings import MAX_EMBEDDINGS
from weave.protocol.inputs import InputImage, RequestedControl
from weave.protocol.loras import MAX_LORAS, RequestedLora
from weave.protocol.parameters import PARAMETERS, Enlarge, choices_of, default_of, summary, type_of

_ROOT = Path(__file__).resolve().parents[1]
_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    tuple[RequestedLora, ...]: "list of `{id, weight}`",
    tuple[str, ...]: "list of strings",
    InputImage: "image: `{width, height, channels}`",
    tuple[InputImage, ...]: "list of images",
    tuple[RequestedControl, ...]: "list of `{id, image, scale, start, end}`",
    Enlarge: "`{scale, strength}`",
}
_OFFERED = {
    OfferedScheduler: "the model's `schedulers`",
    OfferedCache: "`none`, or one of the model's `caches`",
    OfferedLoras: f"at most {MAX_LORAS} of `loras` in `models`, within its `max_weight`",
    OfferedEmbeddings: f"at most {MAX_EMBEDDINGS} of `embeddings` in `models`, each a word of one of the prompts",
    OfferedControls: "the model's `controls`: how many; each with an image within the model's `input_pixels`",
    Enlarged: "`scale` 1.0 to 4.0, within the model's `width`, `height`, `pixels`; `strength` 0.0 to 1.0",
}


def table() -> str:
    """A row for each parameter, in Markdown."""
    columns = ("parameter", "meaning", "type", "bound", "default", "since", "v1", "PNG")
    rows = [columns, ("---",) * len(columns), *(_row(name, parameter) for name, parameter in PARAMETERS.items())]
    return "\n".join("|" + "|".join(f" {cell} " if cell != "---" else cell for cell in row) + "|" for row in rows)


def manual() -> str:
    """An option for each parameter that has one, in roff."""
    return "\n".join(_option(name, parameter) for name, parameter in PARAMETERS.items() if parameter.option)


def _row(name: str, parameter: Parameter) -> tuple[str, ...]:
    return (
        f"`{name}`",
        parameter.help + (f" ({parameter.unit})" if parameter.unit else ""),
        _type(name),
        _bound(name, parameter.bound) if parameter.bound else "",
        default_of(name),
        parameter.since + (f", `{parameter.feature}`" if parameter.feature else ""),
        "yes" if parameter.version_1 else "",
        "yes" if parameter.in_png else "",
    )


def _type(name: str) -> str:
    return " or ".join(f"`{choice}`" for choice in choices_of(name)) or _TYPES[type_of(name)]


def _bound(name: str, bound: Bound) -> str:
    match bound:
        case Range() | FloatRange():
            return f"{bound.min} to {bound.max}"
        case OfModel():
            return f"the model's `{bound.name}`"
        case UpTo():
            return f"0 to the largest of the model's `{bound.name}`"
        case PromptLength():
            return "the model's `prompt_bytes`, `prompt_characters`" + (", or empty" if bound.may_be_empty else "")
        case InputSize():
            several = "the model's `references`: how many; each " if type_of(name) == tuple[InputImage, ...] else ""
            return f"{several}within the model's `input_pixels`"
        case (
            OfferedScheduler() | OfferedCache() | OfferedLoras() | OfferedEmbeddings() | OfferedControls() | Enlarged()
        ):
            return _OFFERED[type(bound)]


def _option(name: str, parameter: Parameter) -> str:
    option, _, metavar = parameter.option.replace("-", "\\-").partition(" ")
    choices = "|".join(choices_of(name))
    shown = f'.BR {option} " {choices}"' if choices else f'.BI {option} " {metavar}"'
    return f".TP\n{shown}\n{summary(name)[0].upper()}{summary(name)[1:]}."


# By document: its text between two lines that are the markers.
DOCUMENTS = {
    _ROOT / "docs/protocol.md": ("<!-- parameters -->", table, "<!-- end of parameters -->"),
    _ROOT / "docs/man/weavectl.1": ('.\\" parameters', manual, '.\\" end of parameters'),
}


def written(document: Path) -> str:
    """The document as it should be."""
    begin, text, end = DOCUMENTS[document]
    before, _, rest = document.read_text().partition(f"{begin}\n")
    _, _, after = rest.partition(f"{end}\n")
    return f"{before}{begin}\n{text()}\n{end}\n{after}"


def main() -> None:
    """Write both."""
    for document in DOCUMENTS:
        document.write_text(written(document))


if __name__ == "__main__":
    main()
