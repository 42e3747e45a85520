"""Images with ControlNets equal those of diffusers; without them nothing has changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.control_nets import CLASSES, as_original_file, as_single_file, make_control, picture
from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.reference import Reference, make_small_model, served_like_here, write_index
from weave.client import Client, Control
from weave.models.families import FAMILIES
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING, TEXT_TO_IMAGE

STEPS, SEED, SCALE, STRENGTH, SIDE = 4, 5, 4.0, 0.75, 64
PROMPT = "a red circle"
IMAGE, EDGES, POSE = picture(1), picture(2, 80, 72), picture(3)
MASK = Image.new("L", (SIDE, SIDE))
MASK.paste(255, (16, 8, 48, 40))
CASES = [(family, task) for family in CLASSES for task in FAMILIES[family].control_nets.pipelines]


class Served(NamedTuple):
    """A daemon with a model of each family and two ControlNets for each, `FAMILY-a` and `FAMILY-b`."""

    daemon: Daemon
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, tables = tmp_path_factory.mktemp("controls"), ""
    for family in CLASSES:
        write_index(family, make_small_model(family, folder / family))
        pipeline = Reference(family, folder / family).pipeline
        tables += f'[models.{family}]\npath = "{folder / family}"\nfamily = "{family}"\n'
        paths = {f"{family}-{name}": folder / f"{family}-{name}" for name in ("a", "b")}
        for seed, path in enumerate(paths.values()):
            make_control(family, pipeline, path, seed)
        paths[f"{family}-file"] = as_single_file(paths[f"{family}-a"], folder / f"{family}.safetensors")
        if family in ("sd1", "sdxl"):
            file = folder / f"{family}-original.safetensors"
            paths[f"{family}-original"] = as_original_file(paths[f"{family}-a"], file)
        for name, path in paths.items():
            tables += f'[controls.{name}]\npath = "{path}"\nfamily = "{family}"\n'
    with served_like_here(tables) as daemon:
        yield Served(daemon, folder)


def wanted(client: Client, family: str, *controls: Control, **more: Any) -> np.ndarray[Any, Any]:
    asked = {"model": family, "width": SIDE, "height": SIDE, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
    asked["scheduler"] = "flow_euler" if family in ("sd3", "flux") else "euler"
    if "image" in more:
        asked["strength"] = STRENGTH
    return pixels(images(generate(client, PROMPT, **asked | {"control": controls} | more))[0])


def inputs(task: str) -> dict[str, Any]:
    return {TEXT_TO_IMAGE: {}, IMAGE_TO_IMAGE: {"image": IMAGE}, INPAINTING: {"image": IMAGE, "mask": MASK}}[task]


def expected(
    served: Served, family: str, task: str, *controls: Control, negative: str | None = None
) -> np.ndarray[Any, Any]:
    """What plain diffusers generates."""
    known = FAMILIES[family].control_nets
    assert known is not None
    plain = Reference(family, served.folder / family)
    nets = [CLASSES[family].from_pretrained(str(served.folder / control.id)) for control in controls]
    made = getattr(diffusers, known.pipelines[task])(
        **{
            name: part
            for name, part in plain.pipeline.components.items()
            if not (family == "flux" and task != TEXT_TO_IMAGE and name in ("image_encoder", "feature_extractor"))
        },
        **({"requires_safety_checker": False} if family == "sd1" else {}),
        controlnet=nets[0] if len(nets) == 1 else nets,
    )
    made.scheduler = plain.scheduler("flow_euler" if family in ("sd3", "flux") else "euler")
    made.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "width": SIDE, "height": SIDE}
    if task != TEXT_TO_IMAGE:
        given |= {"image": IMAGE, "strength": STRENGTH}
    if task == INPAINTING:
        given["mask_image"] = MASK
    if negative is not None:
        given |= {"negative_prompt": negative} | ({"true_cfg_scale": SCALE} if family == "flux" else {})
    lists = {
        "image" if task == TEXT_TO_IMAGE and family in ("sd1", "sdxl") else "control_image": [
            c.image for c in controls
        ],
        "controlnet_conditioning_scale": [control.scale for control in controls],
        "control_guidance_start": [control.start for control in controls],
        "control_guidance_end": [control.end for control in controls],
    }
    given |= {name: values[0] if len(controls) == 1 else values for name, values in lists.items()}
    torch.manual_seed(SEED)
    with torch.inference_mode():
        result = made(prompt=PROMPT, generator=torch.Generator("cpu").manual_seed(SEED), **given).images[0]
    if task == INPAINTING:
        result = made.image_processor.apply_overlay(MASK, IMAGE, result)
    return np.asarray(result)


@pytest.mark.parametrize("family, task", CASES)
def test_an_image_equals_that_of_diffusers(served: Served, family: str, task: str) -> None:
    first = Control(id=f"{family}-a", image=EDGES, scale=0.9)
    second = Control(id=f"{family}-b", image=POSE, scale=1.5, start=0.25, end=0.75)
    with served.daemon.client() as client:
        found = [wanted(client, family, *controls, **inputs(task)) for controls in ((first,), (first, second))]
    assert np.array_equal(found[0], expected(served, family, task, first))
    assert np.array_equal(found[1], expected(served, family, task, first, second))
    assert not np.array_equal(*found)
