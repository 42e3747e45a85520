"""Where a model's weights are does not change pixels. `memory_bytes` limits a device's memory on the CPU too: the
parameters of offloaded weights are on torch's meta device, where most operations fail."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest

from tests.support import tiny_models
from tests.support.builds import build
from tests.support.control_nets import make_control, picture
from tests.support.daemon import Daemon
from tests.support.embeddings import made
from tests.support.generation import generate, images
from tests.support.loras import PEFT, Lora
from tests.support.reference import Reference, write_index
from tests.support.seams import before
from weave.client import Control, WeaveError
from weave.models.assets import Source, find_assets
from weave.models.families import FAMILIES
from weave.models.plans import PLACEMENTS, Placement, Plan, needs_of, work_of
from weave.protocol.client_messages import Done, Loading, Progress
from weave.protocol.defaults import with_defaults
from weave.protocol.errors import ErrorCode
from weave.protocol.loras import RequestedLora
from weave.protocol.parameters import Enlarge, RequestedParameters

SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a denoiser that needs more than all else, as those of the published models do."""
    folder = tiny_models.make("flux", tmp_path_factory.mktemp("models") / "flux")
    transformer = diffusers.FluxTransformer2DModel.from_config(
        diffusers.FluxTransformer2DModel.load_config(folder / "transformer"),
        num_layers=4,
        num_single_layers=4,
        num_attention_heads=20,
    )
    transformer.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Daemon]:
    daemon = Daemon(config(folder))
    yield daemon.wait_until_serving()
    daemon.stop()


def config(folder: Path, budget: int = 0) -> str:
    device = f'[device]\ndevice = "cpu"\nthreads = 1\nmemory_bytes = {budget}\n'
    return device + "".join(
        f'[models.{name}]\npath = "{folder}"\nfamily = "flux"\nmemory = "{name}"\n' for name in ("auto", *PLACEMENTS)
    )


def needed(folder: Path, plan: Placement, side: int = SIDE) -> int:
    family = FAMILIES["flux"]
    needs = needs_of(family, find_assets("flux", Source(folder), "float32"), "float32")
    request = RequestedParameters(prompt="a", width=side, height=side)
    work = work_of(with_defaults(request, family.defaults, family.bounds, seed=0))
    return needs.estimate(work).needed(Plan(plan))


def test_each_plan_gives_the_same_pixels_within_its_memory(daemon: Daemon, folder: Path) -> None:
    assert needed(folder, "streamed") < needed(folder, "stages") < needed(folder, "card")
    found = []
    for plan in PLACEMENTS:
        # Room for this plan, and for none that comes before it.
        daemon.reload(config(folder, needed(folder, plan)))
        with daemon.client() as client:
            answers = generate(client, model="auto", width=SIDE, height=SIDE, steps=3, preview_every=1, seed=5)
            status = client.status()
        loading = [answer.event.plan for answer in answers if isinstance(answer.event, Loading)]
        assert loading == [None, plan] and status.plan == plan
        assert status.memory_used is not None and 0 < status.memory_used <= needed(folder, plan)
        found.append(images(answers)[0].data)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("model", ["auto", *PLACEMENTS])
def test_a_job_too_large_is_refused_with_a_size_that_fits(daemon: Daemon, folder: Path, model: str) -> None:
    budget = needed(folder, "card")
    daemon.reload(config(folder, budget))
    with daemon.client() as client:
        for _ in range(2):  # not loaded, then loaded
            with pytest.raises(WeaveError) as refused:
                generate(client, model=model, width=8 * SIDE, height=8 * SIDE, steps=2)
            error = refused.value.error
            assert (
                error.code == ErrorCode.OUT_OF_MEMORY
                and error.field == "width"
                and f"{budget / 1e9:.3g}" in error.message
            )
            width, height = map(int, error.message.split("; ")[1].split()[0].split("x"))
            assert error.max == width == height < 8 * SIDE
            answers = generate(client, model=model, width=width, height=height, steps=2)
            assert isinstance(answers[-1].event, Done)
    assert [event["reason"] for event in daemon.events("job_failed")] == ["too_large"] * 2


def test_memory_for_nothing_is_said_so(daemon: Daemon, folder: Path) -> None:
    daemon.reload(config(folder, 1000))
    with daemon.client() as client, pytest.raises(WeaveError, match="no size would fit") as refused:
        generate(client, model="auto", width=SIDE, height=SIDE)
    assert refused.value.error.code == ErrorCode.OUT_OF_MEMORY and refused.value.error.field == "model"


# The fifth image or preview of 64x64 finds no memory, and none of 128x128 does.
SHORT = before(
    "gpu_worker/decode.py",
    "decode",
    """
    global _calls
    _calls = globals().get("_calls", 0) + 1
    if width == 128 or _calls == 5:
        raise torch.OutOfMemoryError("CUDA out of memory")
    """,
)


def test_a_job_out_of_memory_is_run_again_in_the_next_plan(folder: Path) -> None:
    wanted = {"width": SIDE, "height": SIDE, "steps": 2, "images": 3, "preview_every": 1, "seed": 5}
    daemon = Daemon(config(folder, needed(folder, "card", 2 * SIDE)), command=build((SHORT,))).wait_until_serving()
    try:
        with daemon.client() as client:
            answers, plain = generate(client, model="auto", **wanted), generate(client, model="auto", **wanted)
            done, undisturbed = answers[-1].event, plain[-1].event
            assert isinstance(done, Done) and isinstance(undisturbed, Done)
            assert (done.fallback, undisturbed.fallback, client.status().plan) == ("stages", None, "stages")
            assert [image.data for image in images(answers)] == [image.data for image in images(plain)]
            # The second image begins again; the first is not sent twice.
            steps = [(a.event.image, a.event.step) for a in answers if isinstance(a.event, Progress)]
            assert steps == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
            assert [event["plan"] for event in daemon.events("memory_short")] == ["card"]
            assert [event["plan"] for event in daemon.events("fallback")] == ["stages"]
            with pytest.raises(WeaveError) as failed:
                generate(client, model="auto", width=2 * SIDE, height=2 * SIDE, steps=1)
            assert failed.value.code is ErrorCode.OUT_OF_MEMORY and len(daemon.events("memory_short")) == 2
            with pytest.raises(WeaveError) as failed:  # a plan that the config sets is the only one
                generate(client, model="card", width=2 * SIDE, height=2 * SIDE, steps=1)
            assert failed.value.code is ErrorCode.OUT_OF_MEMORY and len(daemon.events("memory_short")) == 2
            assert images(generate(client, model="auto", **wanted))
    finally:
        daemon.stop()


class Additions(NamedTuple):
    """A daemon with the same model in each plan, and files for its family."""

    daemon: Daemon
    requests: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def additions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Additions]:
    folder = tmp_path_factory.mktemp("additions")
    write_index("sdxl", tiny_models.make("sdxl", folder / "sdxl"))
    pipeline = Reference("sdxl", folder / "sdxl").pipeline
    layers = {"unet.mid_block.attentions.0.proj_in": "unet mid_block.attentions.0.proj_in"}
    Lora(pipeline, layers, PEFT).write(folder / "lora.safetensors")
    made("clip_l", "clip_g", shape=(2, 32)).write(folder / "style.safetensors")
    make_control("sdxl", pipeline, folder / "control", 1)
    tables = "".join(
        f'[models.{name}]\npath = "{folder / "sdxl"}"\nfamily = "sdxl"\nmemory = "{name}"\n' for name in PLACEMENTS
    )
    for table, name, file in (("loras", "lora", "lora.safetensors"), ("controls", "edges", "control")):
        tables += f'[{table}.{name}]\npath = "{folder / file}"\nfamily = "sdxl"\n'
    tables += f'[embeddings.style]\npath = "{folder / "style.safetensors"}"\nfamily = "sdxl"\n'
    daemon = Daemon(f'[device]\ndevice = "cpu"\nthreads = 1\ndtype = "float16"\n{tables}').wait_until_serving()
    control = [Control(id="edges", image=picture(2))]
    yield Additions(
        daemon,
        {
            "plain": {},
            "lora": {"loras": (RequestedLora("lora", 1.0),)},
            "embedding": {"prompt": "a style circle", "embeddings": ("style",)},
            "control": {"control": control},
            "all from an image": {
                "prompt": "a style circle",
                "embeddings": ("style",),
                "loras": (RequestedLora("lora", 1.0),),
                "control": control,
                "image": picture(1),
            },
            "enlarge": {"enlarge": Enlarge(scale=1.5)},
            "batch": {"images": 3, "batch": 2},
            "plain again": {},
        },
    )
    daemon.stop()


def test_what_jobs_add_to_a_model_works_in_each_plan(additions: Additions) -> None:
    """In float16, for which sdxl's VAE is cast while it decodes."""
    found: dict[str, dict[str, list[bytes]]] = {}
    for plan in PLACEMENTS:
        with additions.daemon.client() as client:
            for name, request in additions.requests.items():
                asked = {"prompt": "a red circle", "width": SIDE, "height": SIDE, "steps": 2, "seed": 5} | request
                answers = generate(client, asked.pop("prompt"), model=plan, preview_every=1, format="raw", **asked)
                found.setdefault(name, {})[plan] = [bytes(image.data) for image in images(answers)]
            assert client.status().plan == plan
    for name, made_in in found.items():
        assert made_in["card"] == made_in["stages"] == made_in["streamed"], name
    assert found["plain"] == found["plain again"] and len({str(it["card"]) for it in found.values()}) == len(found) - 1
