"""The declarations of weave/protocol/parameters.py against everything that must agree with them."""

import re
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_origin, get_type_hints

import pytest
from msgspec import structs
from parameters import DOCUMENTS, written

from weave.config.schema import BoundsOverride, DefaultsOverride
from weave.models.families import FAMILIES
from weave.protocol import version1
from weave.protocol.bounds import Bounds, FloatRange, Range
from weave.protocol.checks import Offered, check_parameters
from weave.protocol.client_messages import Generate
from weave.protocol.declaration import OfModel, UpTo
from weave.protocol.defaults import with_defaults
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.inputs import InputImage
from weave.protocol.parameters import PARAMETERS, Defaults, Parameters, RequestedParameters, type_of

ROOT = Path(__file__).parents[2]
FAMILY = FAMILIES["sd1"]
OFFERED = Offered(bounds=FAMILY.bounds, schedulers=FAMILY.schedulers, tasks=FAMILY.tasks)
GOOD = with_defaults(RequestedParameters(prompt="x"), FAMILY.defaults, FAMILY.bounds, seed=1)
# The broker's business alone: which model, and how the image goes to the client.
NOT_OF_THE_TASK = {"model", "deliver"}
NUMBERS = [name for name, it in PARAMETERS.items() if isinstance(it.bound, Range | FloatRange | OfModel | UpTo)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_say_what_is_declared(document: Path) -> None:
    assert document.read_text() == written(document), "run: python -m scripts.parameters"


def test_generate_and_the_task_have_each_parameter_with_its_type() -> None:
    assert set(Generate.__struct_fields__) == set(PARAMETERS)
    types = get_type_hints(Parameters)
    assert types.pop("encoder_prompts") == tuple[str, ...]
    assert {name: without_none(kind) for name, kind in types.items()} == {
        name: type_of(name) for name in PARAMETERS if name not in NOT_OF_THE_TASK
    }


def without_none(kind: Any) -> Any:
    return kind.__args__[0] if isinstance(kind, UnionType) else kind


def test_every_parameter_of_the_task_is_checked() -> None:
    """By its bound, or where it has a list of values by its type."""
    unchecked = {name for name, it in PARAMETERS.items() if it.bound is None} - NOT_OF_THE_TASK
    assert {name for name in unchecked if get_origin(type_of(name)) is not Literal} == set()


def test_every_bound_of_a_model_is_of_a_parameter() -> None:
    named = {it.bound.name for it in PARAMETERS.values() if isinstance(it.bound, OfModel | UpTo)}
    checked = {"pixels", "inpainting_pixels", "input_pixels", "references", "prompt_bytes", "prompt_characters"}
    checked |= {"controls", "control_start", "control_end"}
    assert named | checked == set(Bounds.__struct_fields__)
    assert set(BoundsOverride.__struct_fields__) == set(Bounds.__struct_fields__)
    assert set(DefaultsOverride.__struct_fields__) == set(Defaults.__struct_fields__)
    assert {PARAMETERS[name].default for name in Defaults.__struct_fields__} == {""}


def test_version_1_has_what_is_declared_so() -> None:
    renamed = {"model_id": "model", "prompts": "prompt"}
    fields = {renamed.get(name, name) for name in version1.Request.__struct_fields__} - {"request_id"}
    assert {name for name, it in PARAMETERS.items() if it.version_1} == fields


def test_the_go_client_can_ask_for_every_parameter() -> None:
    source = (ROOT / "clients/go/requests.go").read_text()
    fields = source.partition("type GenerateRequest struct {")[2].partition("\n}")[0]
    assert sorted(re.findall(r'json:"([a-z_0-9]+)', fields)) == sorted(PARAMETERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_refusal_names_the_field_the_value_and_the_bound(name: str) -> None:
    check_parameters(GOOD, OFFERED)
    kind = type_of(name)
    for value in (kind(-1), kind(2**64)):
        with pytest.raises(RequestError) as refused:
            check_parameters(structs.replace(GOOD, **{name: value}), OFFERED)
        error = refused.value
        assert (error.code, error.field) == (ErrorCode.OUT_OF_BOUNDS, name)
        assert f"{name} is {value}; it must be " in error.message
        assert f"from {error.minimum} to {error.maximum}" in error.message


@pytest.mark.parametrize("digits", [21, 40, 4300, 9000])
@pytest.mark.parametrize("negative", [False, True])
def test_a_number_of_any_length_is_refused_by_name(digits: int, negative: bool) -> None:
    value = (-1 if negative else 1) * 10 ** (digits - 1)
    for name in ("width", "steps", "seed"):
        with pytest.raises(RequestError) as refused:
            check_parameters(structs.replace(GOOD, **{name: value * 10}), OFFERED)
        assert refused.value.field == name and len(refused.value.message) < 200
    image = InputImage(width=1, height=value)
    request = RequestedParameters(prompt="x", width=512, image=image)
    with pytest.raises(RequestError) as refused:
        check_parameters(with_defaults(request, FAMILY.defaults, FAMILY.bounds, seed=0), OFFERED)
    assert refused.value.field == "image.height"
