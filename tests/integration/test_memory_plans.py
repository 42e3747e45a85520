"""Where a model's weights are does not show in the pixels. `memory_bytes` is a device's memory on the CPU too: weights
that are not there are on torch's meta device, with which nothing can be computed."""

from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest

from tests.support import tiny_models
from tests.support.daemon import Daemon
from tests.support.generation import generate, images
from weave.client import WeaveError
from weave.models.assets import Source, find_assets
from weave.models.families import FAMILIES
from weave.models.plans import PLACEMENTS, Placement, Plan, needs_of, work_of
from weave.protocol.client_messages import Done, Loading
from weave.protocol.defaults import with_defaults
from weave.protocol.errors import ErrorCode
from weave.protocol.parameters import RequestedParameters

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


def test_each_plan_is_told_and_gives_the_same_pixels_within_its_memory(daemon: Daemon, folder: Path) -> None:
    assert needed(folder, "streamed") < needed(folder, "stages") < needed(folder, "card")
    made = []
    for plan in PLACEMENTS:
        # Room for this plan, and for none that comes before it.
        daemon.reload(config(folder, needed(folder, plan)))
        with daemon.client() as client:
            answers = generate(client, model="auto", width=SIDE, height=SIDE, steps=3, preview_every=1, seed=5)
            status = client.status()
        loading = [answer.event.plan for answer in answers if isinstance(answer.event, Loading)]
        assert loading == [None, plan] and status.plan == plan
        assert status.memory_used is not None and 0 < status.memory_used <= needed(folder, plan)
        made.append(images(answers)[0].data)
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("model", ["auto", *PLACEMENTS])
def test_a_job_too_large_for_every_plan_is_refused_with_a_size_that_fits(
    daemon: Daemon, folder: Path, model: str
) -> None:
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
