"""Every input that fuzzing kept, and every input that once crashed a target, through its target (`make fuzz`)."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fuzz.targets import TARGETS
from weave.config.schema import ConfigError
from weave.models.embedding_keys import Embedding

FUZZ = Path(__file__).parents[2] / "fuzz"


def inputs(folder: str) -> list[Any]:
    return [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in sorted((FUZZ / folder).glob("*/*"))]


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_in_the_corpus_breaks(target: str) -> None:
    paths = sorted((FUZZ / "corpus" / target).iterdir())
    assert len(paths) >= 5
    for path in paths:
        try:
            TARGETS[target](path.read_bytes())
        except BaseException as error:
            error.add_note(f"the input is {path}")
            raise


@pytest.mark.parametrize("path", inputs("crashes"))
def test_former_crashes_stay_fixed(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_kept_input_has_a_target_and_the_corpus_is_small() -> None:
    kept = [path for folder in ("corpus", "crashes") for path in (FUZZ / folder).glob("*/*")]
    assert {path.parent.name for path in kept} <= set(TARGETS)
    assert sum(path.stat().st_size for path in kept) < 200 * 1024


def raising(*_: Any, **__: Any) -> Any:
    raise IndexError("broken on purpose")


def believing(*_: Any, **__: Any) -> None:
    """A check that refuses nothing."""


def anything(name: str, found: dict[str, Any], allowed: Any) -> Any:
    """A check of a config that yields no fault."""
    yield from ()
    return found


# A decoder that raises a wrong exception, or a check that lets everything through: the target must notice.
BROKEN: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "frames raise": ("frames", "weave.protocol.frames:parse_header", raising),
    "operations raise": ("operations", "weave.protocol.client_messages:decode_op", raising),
    "a refusal that becomes no event": ("operations", "weave.protocol.client_messages:Error.from_exception", raising),
    "an upload leaks": ("uploads", "weave.broker.admission.inputs:close_all", believing),
    "pieces are lost": ("uploads", "weave.broker.front.uploads:Uploads._write", believing),
    "events raise": ("events", "weave.client.codec:decode_event", raising),
    "a client leaks": ("events", "weave.client.codec:close_all", believing),
    "version 1 raises": ("version1", "weave.protocol.version1:decode_request", raising),
    "the config is not checked": ("config", "weave.config.load:check", believing),
    "another file is read": ("config", "weave.config.load:read_checked", lambda _: Path("/etc/passwd").read_bytes()),
    "any header will do": ("safetensors", "weave.models.files:check_safetensors_header", believing),
    "any place will do": ("gguf", "weave.models.gguf:_check_cover", believing),
    "names of other files": ("single_file", "fuzz.targets:tensors_of", lambda *_, **__: {"x": "not in the file"}),
    "any shape will do": ("loras", "weave.models.lora_layers:_check_shapes", believing),
    "vectors of other keys": ("loras", "fuzz.loras:embedding_of", lambda _: Embedding(("x",), (1,), 1)),
    "any value of a ControlNet": ("controls", "weave.models.control_files:check_values", anything),
    "a ControlNet fits all": ("controls", "fuzz.controls:misfits", lambda *_: ()),
    "a recipe raises": ("recipes", "weave.weavectl.recipe:read_infotext", raising),
    "any digest will do": ("recipes", "weave.weavectl.recipe:_digests", lambda _, images: ("x",) * images),
    "the worker is believed": ("worker_replies", "weave.broker.schedule.worker_link:_check_update", believing),
    "the link leaks": ("worker_replies", "weave.broker.schedule.worker_link:close_all", believing),
    "a channel raises": ("control", "weave.protocol.channel:received_descriptors", raising),
    "a channel leaks": ("control", "weave.protocol.channel:close_all", believing),
    "the relay forges": ("relay", "weave.log:_stamp", lambda: "\n"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_harness_can_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, where, broken = BROKEN[name]
    module, _, attribute = where.partition(":")
    owner, _, attribute = attribute.rpartition(".")
    holder = import_module(module)
    monkeypatch.setattr(getattr(holder, owner) if owner else holder, attribute, broken)
    with pytest.raises((AssertionError, ConfigError, LookupError, ValueError)):
        for path in sorted((FUZZ / "corpus" / target).iterdir()):
            TARGETS[target](path.read_bytes())


def test_each_target_has_a_twin_broken_on_purpose() -> None:
    assert {target for target, *_ in BROKEN.values()} == set(TARGETS)
