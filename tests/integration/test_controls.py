"""Images with ControlNets equal those of diffusers; without them nothing has changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.integration.test_weavectl import weavectl
from tests.support.control_nets import CLASSES, as_original_file, as_single_file, make_control, picture
from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.reference import Reference, make_small_model, served_like_here, write_index
from weave.client import Client, Control, InvalidRequest, WeaveError
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Done
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING, TEXT_TO_IMAGE

STEPS, SEED, SCALE, STRENGTH, SIDE = 4, 5, 4.0, 0.75, 64
PROMPT = "a red circle"
IMAGE, EDGES, POSE = picture(1), picture(2, 80, 72), picture(3)
MASK = Image.new("L", (SIDE, SIDE))
MASK.paste(255, (16, 8, 48, 40))
TASKS = {
    family: known.control_nets.pipelines
    for family, known in FAMILIES.items()
    if known.control_nets is not None and family in CLASSES
}
FROM_IMAGES = [(family, task) for family, tasks in TASKS.items() for task in tasks if task != TEXT_TO_IMAGE]
A = Control(id="sd1-a", image=EDGES)
SMALL = {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D"}


class Served(NamedTuple):
    """A daemon with a model of each family, and for each two ControlNets, `FAMILY-a` and `FAMILY-b`, and the first as
    single files."""

    daemon: Daemon
    folder: Path


def make_model(family: str, folder: Path) -> Any:
    """Returns its pipeline. In SD3 nothing is added to the last layer, so here it has two."""
    make_small_model(family, folder)
    if family == "sd3":
        torch.manual_seed(0)
        config = json.loads((folder / "transformer" / "config.json").read_text()) | {"num_layers": 2}
        diffusers.SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    write_index(family, folder)
    return Reference(family, folder).pipeline


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, tables = tmp_path_factory.mktemp("controls"), ""
    for family in TASKS:
        pipeline = make_model(family, folder / family)
        tables += f'[models.{family}]\npath = "{folder / family}"\nfamily = "{family}"\n'
        a, b = (folder / f"{family}-{name}" for name in ("a", "b"))
        paths = [make_control(family, pipeline, a, 1), make_control(family, pipeline, b, 2)]
        paths.append(as_single_file(a, folder / f"{family}-file.safetensors"))
        if family in ("sd1", "sdxl"):
            paths.append(as_original_file(a, folder / f"{family}-original.safetensors"))
            paths.append(as_original_file(a, folder / f"{family}-bare.safetensors", prefix=""))
        if family == "sdxl":
            paths.append(make_control(family, pipeline, folder / "sdxl-small", 3, **SMALL))
            paths.append(as_single_file(paths[-1], folder / "sdxl-small-file.safetensors"))
        tables += "".join(f'[controls.{path.stem}]\npath = "{path}"\nfamily = "{family}"\n' for path in paths)
    tables += f'[models.z]\npath = "{folder / "sd1"}"\nfamily = "z-image"\n'  # is never loaded
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
    served: Served, family: str, task: str, *controls: Control, number: int = 0, **more: Any
) -> np.ndarray[Any, Any]:
    """What plain diffusers generates: image `number` of the call, which gets `more` arguments."""
    plain = Reference(family, served.folder / family)
    nets = [CLASSES[family].from_pretrained(str(served.folder / control.id)) for control in controls]
    parts = dict(plain.pipeline.components)
    if family == "flux" and task != TEXT_TO_IMAGE:
        del parts["image_encoder"], parts["feature_extractor"]
    parts |= {"requires_safety_checker": False} if family == "sd1" else {}
    made = getattr(diffusers, TASKS[family][task])(**parts, controlnet=nets[0] if len(nets) == 1 else nets)
    made.scheduler = plain.scheduler("flow_euler" if family in ("sd3", "flux") else "euler")
    made.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "width": SIDE, "height": SIDE}
    given |= {"image": IMAGE, "strength": STRENGTH} if task != TEXT_TO_IMAGE else {}
    given |= {"mask_image": MASK} if task == INPAINTING else {}
    lists: dict[str, list[Any]] = {
        "image" if task == TEXT_TO_IMAGE and family in ("sd1", "sdxl") else "control_image": [
            c.image for c in controls
        ],
        "controlnet_conditioning_scale": [control.scale for control in controls],
        "control_guidance_start": [control.start for control in controls],
        "control_guidance_end": [control.end for control in controls],
    }
    given |= {name: values[0] if len(controls) == 1 else values for name, values in lists.items()}
    if family == "flux" and len(controls) > 1:
        given["control_mode"] = [None] * len(controls)  # without it some of the pipelines fail
    torch.manual_seed(SEED)
    with torch.inference_mode():
        given |= {"generator": torch.Generator("cpu").manual_seed(SEED)} | more
        result = made(prompt=PROMPT, **given).images[number]
    if task == INPAINTING and "padding_mask_crop" not in more:
        result = made.image_processor.apply_overlay(MASK, IMAGE, result)
    return np.asarray(result)


@pytest.mark.parametrize("family, task", [(family, task) for family, tasks in TASKS.items() for task in tasks])
def test_an_image_equals_that_of_diffusers(served: Served, family: str, task: str) -> None:
    first = Control(id=f"{family}-a", image=EDGES, scale=0.9)
    second = Control(id=f"{family}-b", image=POSE, scale=1.5, start=0.25, end=0.75)
    with served.daemon.client() as client:
        before = wanted(client, family, **inputs(task)) if task == TEXT_TO_IMAGE else None
        found = [wanted(client, family, *controls, **inputs(task)) for controls in ((first,), (first, second))]
        if task == TEXT_TO_IMAGE:
            assert np.array_equal(before, wanted(client, family)) and not np.array_equal(before, found[0])
    assert np.array_equal(found[0], expected(served, family, task, first))
    assert np.array_equal(found[1], expected(served, family, task, first, second))
    assert not np.array_equal(*found)


@pytest.mark.parametrize("family", TASKS)
def test_a_single_file_is_the_same_as_its_folder(served: Served, family: str) -> None:
    names = [path.name for path in served.folder.iterdir() if path.stem.startswith(f"{family}-")]
    with served.daemon.client() as client:
        found = {name: wanted(client, family, Control(id=Path(name).stem, image=EDGES)) for name in names}
    for name, array in found.items():
        folder = "sdxl-small" if "small" in name else f"{family}-b" if name == f"{family}-b" else f"{family}-a"
        assert np.array_equal(array, found[folder]), name
    assert len({array.tobytes() for array in found.values()}) == (3 if family == "sdxl" else 2)


def test_scale_start_and_end_take_effect(served: Served) -> None:
    control = Control(id="sd1-a", image=EDGES)
    cases = [{}, {"scale": 0.5}, {"scale": 2.0}, {"start": 0.5}, {"end": 0.5}, {"scale": 0.0}]
    with served.daemon.client() as client:
        without = wanted(client, "sd1")
        found = [wanted(client, "sd1", Control(id=control.id, image=EDGES, **case)) for case in cases]
        grey = wanted(client, "sd1", Control(id="sd1-a", image=EDGES.convert("L")))
    assert np.array_equal(found[-1], without)
    assert len({array.tobytes() for array in (*found, grey)}) == len(cases) + 1
    assert np.array_equal(found[3], expected(served, "sd1", TEXT_TO_IMAGE, Control(id="sd1-a", image=EDGES, start=0.5)))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_masked_part_alone_is_as_in_diffusers(served: Served, family: str) -> None:
    """The ControlNet sees the same part of its image as the model."""
    control = Control(id=f"{family}-a", image=POSE)
    with served.daemon.client() as client:
        found = wanted(client, family, control, image=IMAGE, mask=MASK, mask_padding=8)
    assert np.array_equal(found, expected(served, family, INPAINTING, control, padding_mask_crop=8))


@pytest.mark.parametrize("family", TASKS)
def test_a_control_works_in_batches(served: Served, family: str) -> None:
    """Sums may be split differently there, which shows in the last bit."""
    controls = (Control(id=f"{family}-a", image=EDGES), Control(id=f"{family}-b", image=POSE))
    asked: dict[str, Any] = {"model": family, "width": SIDE, "height": SIDE, "steps": STEPS, "cfg_scale": SCALE}
    asked |= {"scheduler": "flow_euler" if family in ("sd3", "flux") else "euler", "control": controls}
    with served.daemon.client() as client:
        batch = [pixels(answer) for answer in images(generate(client, PROMPT, **asked, seed=SEED, images=2, batch=2))]
        single = wanted(client, family, *controls, seed=SEED + 1)
    more = {"num_images_per_prompt": 2, "generator": [torch.Generator().manual_seed(SEED + n) for n in range(2)]}
    assert differing(batch[1], expected(served, family, TEXT_TO_IMAGE, *controls, number=1, **more)) <= 2
    # In SD3 the control image's latents are sampled with noise that depends on how many there are.
    assert (differing(batch[1], single) <= 2) == (family != "sd3")


@pytest.mark.parametrize("family, task", FROM_IMAGES)
def test_a_control_works_in_batches_from_an_image(served: Served, family: str, task: str) -> None:
    controls = (Control(id=f"{family}-a", image=EDGES), Control(id=f"{family}-b", image=POSE))
    asked: dict[str, Any] = {"model": family, "width": SIDE, "height": SIDE, "steps": STEPS, "cfg_scale": SCALE}
    asked |= {"scheduler": "flow_euler" if family == "flux" else "euler", "strength": STRENGTH, "seed": SEED}
    with served.daemon.client() as client:
        answers = generate(client, PROMPT, **asked | inputs(task), control=controls, images=2, batch=2)
        single = wanted(client, family, *controls, **inputs(task), seed=SEED + 1)
    assert differing(pixels(images(answers)[1]), single) <= 2


def differing(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_a_control_works_while_enlarging(served: Served) -> None:
    with served.daemon.client() as client:
        enlarged = [wanted(client, "sd1", *it, enlarge={"scale": 2.0}) for it in ((), (A,))]
    assert enlarged[0].shape == (128, 128, 3) and not np.array_equal(*enlarged)


def test_a_negative_prompt_works_where_the_pipeline_has_one(served: Served) -> None:
    control = Control(id="flux-a", image=EDGES)
    with served.daemon.client() as client:
        found = [wanted(client, "flux", control, negative_prompt=it) for it in ("", "blue")]
        answers = generate(
            client,
            PROMPT,
            **{"model": "flux", "width": SIDE, "height": SIDE, "steps": STEPS},
            negative_prompt="blue",
            image=IMAGE,
            control=(control,),
        )
    more = {"negative_prompt": "blue", "true_cfg_scale": SCALE}
    assert np.array_equal(found[1], expected(served, "flux", TEXT_TO_IMAGE, control, **more))
    assert not np.array_equal(*found)
    done = answers[-1].event
    assert isinstance(done, Done) and done.tokens and done.tokens.prompt and not done.tokens.negative_prompt


ELSE = "names one that this model's family does not have"
REFUSED: dict[str, tuple[str, tuple[Control, ...], dict[str, Any], str, str]] = {
    "unknown": ("sd1", (Control(id="none", image=EDGES),), {}, "out_of_bounds", f"control {ELSE}"),
    "a path": ("sd1", (Control(id="/etc/passwd", image=EDGES),), {}, "out_of_bounds", f"control {ELSE}"),
    "another family's": ("sd1", (Control(id="flux-a", image=EDGES),), {}, "out_of_bounds", f"control {ELSE}"),
    "twice": ("sd1", (A, A), {}, "invalid_request", "control names one twice"),
    "five": ("sd1", (A,) * 5, {}, "out_of_bounds", "control is 5; it must be from 0 to 4"),
    "a hundred": ("sd1", (A,) * 100, {}, "out_of_bounds", "control is 100; it must be from 0 to 4"),
    "too strong": (
        *("sd1", (Control(id="sd1-a", image=EDGES, scale=2.5),), {}, "out_of_bounds"),
        "control.scale is 2.5; it must be from 0.0 to 2.0",
    ),
    "start at end": (
        *("sd1", (Control(id="sd1-a", image=EDGES, start=0.5, end=0.5),), {}, "out_of_bounds"),
        "control.start is 0.5; it must be less than control.end, which is 0.5",
    ),
    "end": (
        *("sd1", (Control(id="sd1-a", image=EDGES, end=1.5),), {}, "out_of_bounds"),
        "control.end is 1.5; it must be from 0.0 to 1.0",
    ),
    "sd3 from an image": (
        *("sd3", (Control(id="sd3-a", image=EDGES),), {"image": IMAGE}, "out_of_bounds"),
        "control is for models whose tasks include control+image-to-image",
    ),
    "sd3 with a mask": (
        *("sd3", (Control(id="sd3-a", image=EDGES),), {"image": IMAGE, "mask": MASK}, "out_of_bounds"),
        "control is for models whose tasks include control+inpainting",
    ),
    "sd3 enlarged": (
        *("sd3", (Control(id="sd3-a", image=EDGES),), {"enlarge": {"scale": 2.0}}, "out_of_bounds"),
        "enlarge is for models whose tasks include control+image-to-image",
    ),
    "a family without": ("z", (A,), {}, "out_of_bounds", f"control {ELSE}"),
}


@pytest.mark.parametrize("family, controls, more, code, message", REFUSED.values(), ids=REFUSED)
def test_a_bad_list_is_refused_by_name(
    served: Served, family: str, controls: tuple[Control, ...], more: dict[str, Any], code: str, message: str
) -> None:
    with served.daemon.client() as client, pytest.raises(WeaveError) as refused:
        list(client.generate(PROMPT, model=family, control=controls, steps=STEPS, **more))
    assert refused.value.code == code and message in str(refused.value)
    with served.daemon.client() as client:
        assert client.status().queue_length == 0


def test_scales_that_are_not_numbers_are_refused(served: Served) -> None:
    """JSON cannot express them: a client refuses them, or sends null, which the daemon refuses."""
    with served.daemon.client() as client:
        for field, value in (("scale", float("nan")), ("start", float("-inf")), ("end", float("nan"))):
            with pytest.raises((InvalidRequest, WeaveError), match=field):
                wanted(client, "sd1", Control(id="sd1-a", image=EDGES, **{field: value}))
        assert client.status().queue_length == 0


def test_clients_find_the_controls_with_the_models(served: Served) -> None:
    with served.daemon.client() as client:
        found = client.list_models()
        assert "control" in client.status().features
    tasks = {model.id: [task for task in model.tasks if task.startswith("control")] for model in found.models}
    every = ["control", "control+image-to-image", "control+inpainting"]
    assert tasks == {"sd1": every, "sdxl": every, "sd3": ["control"], "flux": every, "z": []}
    assert {(it.id, it.family, it.title) for it in found.controls} >= {("sd3-b", "sd3", "sd3-b")}
    assert all(it.id.startswith(it.family) for it in found.controls)


def test_weavectl_takes_controls_and_lists_them(served: Served, tmp_path: Path) -> None:
    EDGES.save(tmp_path / "edges.png")
    options = ("--model=sd1", "--steps=1", "--width=64", "--height=64", "--control=sd1-a:0.5=edges.png")
    ended = weavectl(served.daemon, "generate", PROMPT, *options, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "  sd1-a                 sd1         sd1-a (ControlNet)" in weavectl(served.daemon, "models").stdout
    assert "ok    control sdxl-small: " in weavectl(served.daemon, "doctor").stdout
