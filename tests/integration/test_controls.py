"""Images with ControlNets equal those of diffusers; without them nothing has changed."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.integration.test_weavectl import weavectl
from tests.support.control_nets import CLASSES, as_original_file, as_single_file, make_control, picture
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images, pixels
from tests.support.reference import Reference, arguments, make_small_model, served_like_here, write_index
from weave.client import Client, Control, InvalidRequest, WeaveError
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Done, Progress
from weave.protocol.errors import ErrorCode
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
FLOW = [family for family in TASKS if FAMILIES[family].defaults.scheduler == "flow_euler"]
SEVERAL = [family for family in TASKS if FAMILIES[family].bounds.controls.max > 1]
FROM_IMAGES = [(family, task) for family, tasks in TASKS.items() for task in tasks if task != TEXT_TO_IMAGE]
FROM_NOISE = [(name, INPAINTING) for name in ("qwen-image", "z-image")]
# More layers than the tiny models have: in SD3 nothing is added to the last one.
LAYERS = {
    "sd3": {"num_layers": 2},
    "qwen-image": {"num_layers": 3},
    "z-image": {"n_layers": 4, "n_refiner_layers": 2},
}
NETS: dict[str, dict[str, Any]] = {
    "qwen-image": {"num_layers": 2},
    "z-image": {"control_layers_places": [0, 2], "control_refiner_layers_places": [0, 1]},
}
A = Control(id="sd1-a", image=EDGES)
OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {"sdxl-small": {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D"}},
    "qwen-image": {"qwen-image-mask": {"extra_condition_channels": 4, "num_layers": 1}},
    "z-image": {
        "z-image-first": {"add_control_noise_refiner": None, "control_in_dim": 4},
        "z-image-second": {"add_control_noise_refiner": "control_layers"},
    },
}


class Served(NamedTuple):
    """A daemon with a model of each family, and for each two ControlNets, `FAMILY-a` and `FAMILY-b`, and more; `files`
    are those that are single files of the ControlNets that they map to."""

    daemon: Daemon
    folder: Path
    files: dict[str, str]


def make_model(family: str, folder: Path) -> Any:
    """Returns its pipeline."""
    make_small_model(family, folder)
    if family in LAYERS:
        torch.manual_seed(0)
        config = json.loads((folder / "transformer" / "config.json").read_text()) | LAYERS[family]
        made = getattr(diffusers, config["_class_name"]).from_config(config)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.nan_to_num_().clamp_(-1, 1)  # classes leave some uninitialised
        made.save_pretrained(folder / "transformer")
    write_index(family, folder)
    return Reference(family, folder).pipeline


def add_unused(path: Path, newer: Path) -> None:
    """Files of Union 2.0 have the layers of 2.1, with zeros."""
    unused = {name: it for name, it in load_file(newer).items() if name.startswith("control_noise_refiner.")}
    unused |= {name: torch.zeros_like(it) for name, it in unused.items() if "_proj." in name}
    save_file(load_file(path) | unused, path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, tables, files = tmp_path_factory.mktemp("controls"), "", {}
    for family in TASKS:
        pipeline = make_model(family, folder / family)
        tables += f'[models.{family}]\npath = "{folder / family}"\nfamily = "{family}"\n'
        a, b = (folder / f"{family}-{name}" for name in ("a", "b"))
        paths = [make_control(family, pipeline, path, n, **NETS.get(family, {})) for n, path in enumerate((a, b), 1)]
        copies = [(a, as_single_file(a, folder / f"{family}-file.safetensors"))]
        if family in ("sd1", "sdxl"):
            copies.append((a, as_original_file(a, folder / f"{family}-original.safetensors")))
            copies.append((a, as_original_file(a, folder / f"{family}-bare.safetensors", prefix="")))
        for name, changed in OTHERS.get(family, {}).items():
            paths.append(make_control(family, pipeline, folder / name, 3, **NETS.get(family, {}) | changed))
            copies.append((paths[-1], as_single_file(paths[-1], folder / f"{name}-file.safetensors")))
            if name == "z-image-second":
                add_unused(copies[-1][1], copies[0][1])
        files |= {copy.stem: net.name for net, copy in copies}
        paths += [copy for _, copy in copies]
        tables += "".join(f'[controls."{path.stem}"]\npath = "{path}"\nfamily = "{family}"\n' for path in paths)
    tables += f'[models.z]\npath = "{folder / "sd1"}"\nfamily = "krea2"\n'  # is never loaded
    with served_like_here(tables) as daemon:
        yield Served(daemon, folder, files)


def wanted(client: Client, family: str, *controls: Control, **more: Any) -> np.ndarray[Any, Any]:
    asked = {"model": family, "width": SIDE, "height": SIDE, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
    asked["scheduler"] = "flow_euler" if family in FLOW else "euler"
    if "image" in more:
        asked["strength"] = STRENGTH
    return pixels(images(generate(client, PROMPT, **asked | {"control": controls} | more))[0])


def inputs(task: str) -> dict[str, Any]:
    return {TEXT_TO_IMAGE: {}, IMAGE_TO_IMAGE: {"image": IMAGE}, INPAINTING: {"image": IMAGE, "mask": MASK}}[task]


def expected(
    served: Served, family: str, task: str, *controls: Control, number: int = 0, dtype: str = "float32", **more: Any
) -> np.ndarray[Any, Any]:
    """What plain diffusers generates: image `number` of the call, which gets `more` arguments."""
    plain = Reference(family, served.folder / family, dtype)
    nets = [
        CLASSES[family].from_pretrained(str(served.folder / control.id), torch_dtype=getattr(torch, dtype))
        for control in controls
    ]
    parts = dict(plain.pipeline.components)
    for module in (*nets, *(part for part in parts.values() if isinstance(part, torch.nn.Module))):
        module._apply(torch.clone)  # out of the mapped file, as in assembled()
    if family == "flux" and task != TEXT_TO_IMAGE:
        del parts["image_encoder"], parts["feature_extractor"]
    parts |= {"requires_safety_checker": False} if family == "sd1" else {}
    made = getattr(diffusers, TASKS[family][task])(**parts, controlnet=nets[0] if len(nets) == 1 else nets)
    made.scheduler = plain.scheduler("flow_euler" if family in FLOW else "euler")
    made.set_progress_bar_config(disable=True)
    given: dict[str, Any] = arguments(family, None, steps=STEPS, scale=SCALE, side=SIDE)
    given |= {"image": IMAGE, "strength": STRENGTH} if task != TEXT_TO_IMAGE else {}
    given |= {"mask_image": MASK, "control_mask": MASK} if task == INPAINTING else {}
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
    taken = inspect.signature(made.__call__).parameters
    given = {name: value for name, value in given.items() if name in taken}
    torch.manual_seed(SEED)
    with torch.inference_mode():
        given |= {"generator": torch.Generator("cpu").manual_seed(SEED)} | more
        result = made(prompt=PROMPT, **given).images[number]
    if task == INPAINTING and "padding_mask_crop" not in more:
        result = made.image_processor.apply_overlay(MASK, IMAGE, result)
    return np.asarray(result)


def first_of(family: str, task: str) -> str:
    """The ID of a ControlNet for the task."""
    return "qwen-image-mask" if (family, task) == ("qwen-image", INPAINTING) else f"{family}-a"


@pytest.mark.parametrize("family, task", [(family, task) for family, tasks in TASKS.items() for task in tasks])
def test_an_image_equals_that_of_diffusers(served: Served, family: str, task: str) -> None:
    first = Control(id=first_of(family, task), image=EDGES, scale=0.9)
    second = Control(id=f"{family}-b", image=POSE, scale=1.5, start=0.25, end=0.75)
    cases = [(first,), (first, second)] if family in SEVERAL else [(first,)]
    with served.daemon.client() as client:
        before = wanted(client, family, **inputs(task))
        found = [wanted(client, family, *controls, **inputs(task)) for controls in cases]
        assert np.array_equal(before, wanted(client, family, **inputs(task)))
    for controls, image in zip(cases, found, strict=True):
        assert np.array_equal(image, expected(served, family, task, *controls))
    assert len({image.tobytes() for image in (before, *found)}) == 1 + len(cases)


@pytest.mark.parametrize("family", TASKS)
def test_a_single_file_is_the_same_as_its_folder(served: Served, family: str) -> None:
    files = {copy: net for copy, net in served.files.items() if net.startswith(f"{family}-")}

    def image(client: Client, name: str) -> np.ndarray[Any, Any]:
        more = inputs(INPAINTING) if "mask" in name else {}
        return wanted(client, family, Control(id=name, image=EDGES), **more)

    with served.daemon.client() as client:
        nets = {net: image(client, net) for net in (f"{family}-b", *files.values())}
        for copy, net in files.items():
            assert np.array_equal(image(client, copy), nets[net]), copy
    assert len({array.tobytes() for array in nets.values()}) == len(nets)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_images_equal_those_of_diffusers(served: Served, dtype: str) -> None:
    tables = ""
    for family, _ in FROM_NOISE:
        tables += f'[models.{family}]\npath = "{served.folder / family}"\nfamily = "{family}"\n'
        for name in {first_of(family, task) for task in TASKS[family]}:
            tables += f'[controls.{name}]\npath = "{served.folder / name}"\nfamily = "{family}"\n'
    with served_like_here(tables, dtype) as daemon, daemon.client() as client:
        assert client.load_model(FROM_NOISE[0][0]) and client.status().dtype == dtype
        for family, task in [(name, task) for name, _ in FROM_NOISE for task in TASKS[name]]:
            control = Control(id=first_of(family, task), image=EDGES, scale=0.9)
            found = wanted(client, family, control, **inputs(task))
            assert np.array_equal(found, expected(served, family, task, control, dtype=dtype)), (family, task)


@pytest.mark.parametrize("family", ["qwen-image", "z-image"])
def test_where_the_weights_are_does_not_show(served: Served, family: str) -> None:
    """Z-Image's ControlNets use layers of the model, which are offloaded."""
    plans = ("auto", "stages", "streamed")
    tables = "".join(
        f'[models.{plan}]\npath = "{served.folder / family}"\nfamily = "{family}"\nmemory = "{plan}"\n'
        for plan in plans
    )
    tables += f'[controls.{family}-a]\npath = "{served.folder / family}-a"\nfamily = "{family}"\n'
    control = Control(id=f"{family}-a", image=EDGES, scale=0.9)
    with served_like_here(tables) as daemon, daemon.client() as client:
        for plan in plans:
            assert client.load_model(plan)
            found = [wanted(client, family, *controls, model=plan) for controls in ((control,), (), (control,))]
            assert client.status().plan == ("card" if plan == "auto" else plan)
            assert np.array_equal(found[0], expected(served, family, TEXT_TO_IMAGE, control)), plan
            assert np.array_equal(found[2], found[0]) and not np.array_equal(found[1], found[0])


def test_strength_has_no_effect_where_diffusers_uses_noise(served: Served) -> None:
    for family, task in FROM_NOISE:
        asked = {"model": family, "width": SIDE, "height": SIDE, "steps": STEPS, "cfg_scale": SCALE, "seed": SEED}
        control = (Control(id=first_of(family, task), image=EDGES),)
        with served.daemon.client() as client:
            some, all_steps = (
                generate(client, PROMPT, **asked, **inputs(task), control=control, strength=strength)
                for strength in (0.5, 1.0)
            )
        assert np.array_equal(pixels(images(some)[0]), pixels(images(all_steps)[0]))
        for answers in (some, all_steps):
            steps = [it.event.step for it in answers if isinstance(it.event, Progress)]
            assert steps == list(range(1, STEPS + 1))


def test_a_control_for_another_task_is_refused(served: Served) -> None:
    with served.daemon.client() as client:
        for name, family, task, its in (
            ("qwen-image-mask", "qwen-image", TEXT_TO_IMAGE, INPAINTING),
            ("qwen-image-a", "qwen-image", INPAINTING, TEXT_TO_IMAGE),
            ("z-image-first", "z-image", INPAINTING, TEXT_TO_IMAGE),
        ):
            with pytest.raises(WeaveError) as refused:
                wanted(client, family, Control(id=name, image=EDGES), **inputs(task))
            assert refused.value.code is ErrorCode.WORKER_FAILED
            reason = f"{name}: it is for {its}, not for {task}"
            wait_for(lambda: [it for it in served.daemon.events("job_failed") if it["detail"] == reason])  # noqa: B023


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


def two(family: str, task: str) -> tuple[Control, ...]:
    """Or one, where there may be no more."""
    both = (Control(id=first_of(family, task), image=EDGES), Control(id=f"{family}-b", image=POSE))
    return both if family in SEVERAL else both[:1]


@pytest.mark.parametrize("family", TASKS)
def test_a_control_works_in_batches(served: Served, family: str) -> None:
    """Sums may be split differently there, which shows in the last bit."""
    controls = two(family, TEXT_TO_IMAGE)
    asked: dict[str, Any] = {"model": family, "width": SIDE, "height": SIDE, "steps": STEPS, "cfg_scale": SCALE}
    asked |= {"scheduler": "flow_euler" if family in FLOW else "euler", "control": controls}
    with served.daemon.client() as client:
        batch = [pixels(answer) for answer in images(generate(client, PROMPT, **asked, seed=SEED, images=2, batch=2))]
        single = wanted(client, family, *controls, seed=SEED + 1)
    more = {"num_images_per_prompt": 2, "generator": [torch.Generator().manual_seed(SEED + n) for n in range(2)]}
    assert differing(batch[1], expected(served, family, TEXT_TO_IMAGE, *controls, number=1, **more)) <= 2
    # In SD3 the control image's latents are sampled with noise that depends on how many there are.
    assert (differing(batch[1], single) <= 2) == (family != "sd3")


@pytest.mark.parametrize("family, task", FROM_IMAGES)
def test_a_control_works_in_batches_from_an_image(served: Served, family: str, task: str) -> None:
    controls = two(family, task)
    asked: dict[str, Any] = {"model": family, "width": SIDE, "height": SIDE, "steps": STEPS, "cfg_scale": SCALE}
    asked |= {"scheduler": "flow_euler" if family in FLOW else "euler", "strength": STRENGTH, "seed": SEED}
    with served.daemon.client() as client:
        answers = generate(client, PROMPT, **asked | inputs(task), control=controls, images=2, batch=2)
        single = wanted(client, family, *controls, **inputs(task), seed=SEED + 1)
    # Qwen-Image's class takes noise for the image's latents that depends on how many there are.
    assert (differing(pixels(images(answers)[1]), single) <= 2) == (family != "qwen-image")


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
    "two of qwen-image": (
        *("qwen-image", (Control(id="qwen-image-a", image=EDGES), Control(id="qwen-image-b", image=POSE)), {}),
        *("out_of_bounds", "control is 2; it must be from 0 to 1"),
    ),
    "two of z-image": (
        *("z-image", (Control(id="z-image-a", image=EDGES), Control(id="z-image-b", image=POSE)), {}),
        *("out_of_bounds", "control is 2; it must be from 0 to 1"),
    ),
    "z-image from a step": (
        *("z-image", (Control(id="z-image-a", image=EDGES, start=0.5),), {}, "out_of_bounds"),
        "control.start is 0.5; it must be from 0.0 to 0.0",
    ),
    "z-image up to a step": (
        *("z-image", (Control(id="z-image-a", image=EDGES, end=0.5),), {}, "out_of_bounds"),
        "control.end is 0.5; it must be from 1.0 to 1.0",
    ),
    "z-image from an image": (
        *("z-image", (Control(id="z-image-a", image=EDGES),), {"image": IMAGE}, "out_of_bounds"),
        "control is for models whose tasks include control+image-to-image",
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
    both = ["control", "control+inpainting"]
    assert tasks == {
        **{"sd1": every, "sdxl": every, "sd3": ["control"], "flux": every, "z": []},
        **{"qwen-image": both, "z-image": both},
    }
    assert {(it.id, it.family, it.title) for it in found.controls} >= {("sd3-b", "sd3", "sd3-b")}
    assert all(it.id.startswith(it.family) for it in found.controls)


def test_weavectl_takes_controls_and_lists_them(served: Served, tmp_path: Path) -> None:
    EDGES.save(tmp_path / "edges.png")
    options = ("--model=sd1", "--steps=1", "--width=64", "--height=64", "--control=sd1-a:0.5=edges.png")
    ended = weavectl(served.daemon, "generate", PROMPT, *options, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "  sd1-a                 sd1         sd1-a (ControlNet)" in weavectl(served.daemon, "models").stdout
    assert "ok    control sdxl-small: " in weavectl(served.daemon, "doctor").stdout
