"""Makes a generate request, and the images that go with it, from the images that a program has."""

import os
from collections.abc import Iterable
from typing import Any

from msgspec import Struct, structs

from weave.client.codec import InvalidRequest
from weave.client.pixels import Upload, pixels_of
from weave.protocol.client_messages import Generate
from weave.protocol.inputs import RequestedControl
from weave.protocol.parameters import PARAMETERS

# The parameters that announce images, in the order of inputs_of().
_INPUTS = ("image", "mask", "control", "references")


class Control(Struct, frozen=True, kw_only=True):
    """A ControlNet and the image that it sees, which is anything that pixels_of() takes. For the other fields see
    RequestedControl."""

    id: str
    image: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


def has_images(parameters: dict[str, Any]) -> bool:
    """Whether any of these parameters announces an image."""
    return any(parameters.get(field) is not None for field in _INPUTS)


def generate_message(prompt: str, parameters: dict[str, Any]) -> tuple[Generate, tuple[Upload, ...]]:
    """The request and its images. `image`, `mask`, each of `references` and the image of each Control in `control` are
    what pixels_of() takes. Raises InvalidRequest, OSError."""
    values: dict[str, Any] = {name: value for name, value in parameters.items() if name not in _INPUTS}
    uploads: list[Upload] = []

    def announced(field: str, value: Any) -> Any:
        uploads.append(pixels_of(field, value))
        return uploads[-1].size

    for field in _INPUTS:
        given = parameters.get(field)
        if given is None:
            continue
        if field in ("image", "mask"):
            values[field] = announced(field, given)
        elif field == "control":
            values[field] = tuple(_control(control, announced) for control in _listed(field, given))
        else:
            values[field] = tuple(announced(field, value) for value in _listed(field, given))
    return Generate(prompt=prompt, **values), tuple(uploads)


def needed_features(message: Generate) -> dict[str, str]:
    """For each field with images, the feature that the daemon must list in `status`. An older daemon may close the
    connection at an image frame."""
    features = {field: PARAMETERS[field].feature for field in _INPUTS if getattr(message, field)}
    return {field: feature for field, feature in features.items() if feature is not None}


def check_features(message: Generate, offered: tuple[str, ...], version: str) -> None:
    """Raises InvalidRequest if the daemon is too old for the request."""
    for field, feature in needed_features(message).items():
        if feature not in offered:
            raise InvalidRequest(f"{field}: the daemon, version {version}, does not have the feature {feature}")


def _listed(field: str, given: Any) -> Iterable[Any]:
    if isinstance(given, str | bytes | os.PathLike | Control) or not isinstance(given, Iterable):
        raise InvalidRequest(f"{field} is one {type(given).__name__}; it must be a list")
    return given


def _control(control: Any, announced: Any) -> RequestedControl:
    if not isinstance(control, Control):
        raise InvalidRequest(f"control has an element of type {type(control).__name__}; it must be a Control")
    return RequestedControl(**structs.asdict(control) | {"image": announced("control", control.image)})
