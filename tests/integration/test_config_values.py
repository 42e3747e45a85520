"""Every key of every component's config with values that it may not have: a model that loads also generates."""

import json
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.support.reference import FROM_TEXT, make_small_model, one_thread
from weave.gpu_worker.generation import Generation, Sent, generate
from weave.gpu_worker.loading import load_pipeline
from weave.models.assets import Source
from weave.models.components import TOKENIZER_RULES, ModelClass
from weave.models.configs import Rule, Rules, shown
from weave.models.families import FAMILIES
from weave.models.files import ModelFilesRefused
from weave.models.schedulers import SCHEDULER_RULES, SCHEDULERS
from weave.protocol.channel import Channel, socket_pair
from weave.protocol.client_messages import ModelOffer
from weave.protocol.parameters import Parameters
from weave.protocol.worker_messages import Run, ToWorker

# sd2 has sd1's classes.
NAMES = [name for name in FROM_TEXT if name != "sd2"]
# Null, a list, a string, a negative number, a huge one.
VALUES = (None, [], "no-such-name", -1, 1 << 62)


# sd1's models have the schedulers of diffusion, sdxl's here one of EDM: of that the keys that it takes.
EDM = diffusers.EDMDPMSolverMultistepScheduler
OF_EDM = SCHEDULER_RULES._replace(keys={key: SCHEDULER_RULES.keys[key] for key in list(signature(EDM).parameters)})


def files_of(family: str) -> dict[str, Rules]:
    """The rules of each JSON file that a component is made from."""
    files = {"scheduler/scheduler_config.json": OF_EDM if family == "sdxl" else SCHEDULER_RULES}
    for part, component in FAMILIES[family].components.items():
        if isinstance(component, ModelClass):
            files[f"{part}/config.json"] = component.config
        else:
            files |= {f"{part}/{name}": rules for name, rules in TOKENIZER_RULES.items()}
    return files


def subject(family: str, name: str) -> str:
    """What a file's values affect: the class, and the family where its pipeline reads the values itself."""
    part, _, file = name.partition("/")
    if part == "scheduler":
        return str(FAMILIES[family].schedulers)
    return f"{file} {FAMILIES[family].components[part].class_name} {family if part == 'vae' else ''}"


FILES = {subject(family, name): (family, name) for family in reversed(NAMES) for name in files_of(family)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {family: make_small_model(family, folder / family) for family in NAMES}
    EDM().save_pretrained(made["sdxl"] / "scheduler")
    return made


@pytest.fixture(scope="module", autouse=True)
def on_one_thread() -> Iterator[None]:
    """Hundreds of tiny models: threads would only wait for each other."""
    with one_thread():
        yield


def load_and_generate(family: str, model: Path) -> None:
    """Two steps of the worker's own code. Raises ModelFilesRefused while it loads, or what the generation raises."""
    pipeline = load_pipeline(family, Source(model), torch.device("cpu"), torch.float32)
    known = FAMILIES[family]
    scheduler = next(
        name for name in known.schedulers if SCHEDULERS[name].class_name == type(pipeline.scheduler).__name__
    )
    parameters = Parameters(
        prompt="a red circle", negative_prompt="blue", width=64, height=64, steps=2, cfg_scale=5.0, seed=1,
        scheduler=scheduler, images=1, format="raw", preview_every=0,
    )  # fmt: skip
    offer = ModelOffer(
        id=family,
        family=family,
        title=family,
        bounds=known.bounds,
        defaults=known.defaults,
        schedulers=known.schedulers,
    )
    ours, theirs = socket_pair()
    with theirs:
        channel: Channel[ToWorker] = Channel(ours, ToWorker)
        try:
            generate(Generation(channel, pipeline, offer, Run(job=1, parameters=parameters), str, Sent()))
        except ModelFilesRefused as error:
            raise AssertionError("refused after it was loaded") from error
        finally:
            channel.close()


def keys_of(rules: Rules, *path: str) -> Iterator[tuple[tuple[str, ...], Rule]]:
    """Of the objects within a config too."""
    for key, rule in rules.keys.items():
        yield (*path, key), rule
    for key, inner in rules.objects.items():
        yield from keys_of(inner, *path, key)


def changed(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    key, *rest = path
    return config | {key: changed(config.get(key) or {}, tuple(rest), value) if rest else value}


@pytest.mark.parametrize("family, name", FILES.values(), ids=FILES)
def test_a_model_that_loads_also_generates(models: dict[str, Path], family: str, name: str) -> None:
    file, rules = models[family] / name, files_of(family)[name]
    sound = file.read_bytes() if file.exists() else None
    before: dict[str, Any] = json.loads(sound) if sound is not None else {}
    try:
        for path, rule in keys_of(rules):
            key = ": ".join(path)
            for value in VALUES:
                file.write_text(json.dumps(changed(before, path, value)))
                try:
                    load_and_generate(family, models[family])
                except ModelFilesRefused as error:
                    assert rule.fits(value) or str(error) == f"{name}: {key} is {shown(value)}, expected {rule.words}"
                    assert str(error).startswith(name.partition("/")[0])
                except Exception as error:
                    raise AssertionError(f"{key}: {value!r} loaded, then failed") from error
                else:
                    assert rule.fits(value), f"{key}: {value!r} was not refused"
    finally:
        if sound is None:
            file.unlink()
        else:
            file.write_bytes(sound)
