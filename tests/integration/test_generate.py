import asyncio
import os

import numpy as np
import pytest

from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT, generate, images, pixels
from tests.support.shapes_checker import look
from tests.support.system import MODEL
from training.shapes.data import Scene, held_out_pairs, held_out_singles
from weave.client import AsyncClient, WeaveError
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Done, Image, Preview, Progress, Queued
from weave.protocol.errors import ErrorCode

# With the demo model's cosine schedule one timestep would come twice, at which these classes of diffusers fail.
RULED_OUT = {f"{name}_{spacing}" for name in ("dpmpp_2m", "unipc") for spacing in ("karras", "exponential")}


@pytest.mark.parametrize(
    ("sample", "most_wrong"),
    [(held_out_singles()[:10], 1), (held_out_pairs()[:10], 2)],
    ids=["one shape", "two shapes"],
)
def test_held_out_prompts_give_the_requested_shapes(
    shared_daemon: Daemon, sample: list[Scene], most_wrong: int
) -> None:
    with shared_daemon.client() as client:
        seen = [look(pixels(images(generate(client, scene.prompt(), steps=20, seed=1))[0])) for scene in sample]
    wrong = [(scene, found) for scene, found in zip(sample, seen, strict=True) if not found.shows(*scene)]
    assert len(wrong) <= most_wrong, wrong


def test_the_same_seed_gives_the_same_pixels_another_does_not(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        first, again, other = (images(generate(client, seed=seed))[0] for seed in (5, 5, 6))
    assert first.data == again.data
    assert not np.array_equal(pixels(first), pixels(other))


def test_events_come_in_order_with_every_step(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        events = [answer.event for answer in generate(client, steps=6, images=2)]
    assert isinstance(events[0], Queued)
    assert [(e.image, e.step) for e in events if isinstance(e, Progress)] == [
        (i, s) for i in (0, 1) for s in range(1, 7)
    ]
    assert isinstance(events[-1], Done) and events[-1].seed == 1 and events[-1].timings is not None


def test_the_second_image_equals_that_of_its_own_seed(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        both = images(generate(client, seed=2**64 - 1, images=2))
        alone = images(generate(client, seed=0))[0]
    assert [answer.event.seed for answer in both if isinstance(answer.event, Image)] == [2**64 - 1, 0]
    assert np.array_equal(pixels(both[1]), pixels(alone))


def test_a_seed_has_64_bits_and_a_random_one_fits_a_double(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        seeds = (5, 5 + 2**32, 5 + 2**63)
        assert len({pixels(images(generate(client, seed=seed, steps=1))[0]).tobytes() for seed in seeds}) == 3
        events = [answer.event for answer in generate(client, seed=None, steps=1)]
    (random,) = [event.seed for event in events if isinstance(event, Image)]
    assert 0 <= random < 2**32


def test_a_png_carries_the_parameters_to_recreate_it(shared_daemon: Daemon) -> None:
    import io

    from PIL import Image as PillowImage

    with shared_daemon.client() as client:
        answer = images(generate(client, negative_prompt="ünïcode", seed=9))[0]
    text = PillowImage.open(io.BytesIO(answer.data)).text  # type: ignore[attr-defined]
    assert {
        "prompt": PROMPT,
        "negative_prompt": "ünïcode",
        "seed": "9",
        "steps": "4",
        "model": "shapes",
    }.items() <= text.items()


def test_raw_pixels_are_the_pixels_of_the_png(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        png, raw = images(generate(client))[0], images(generate(client, format="raw"))[0]
    assert raw.data == pixels(png).tobytes()


def test_an_image_in_a_memfd_is_sealed_and_the_same(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        inline, by_fd = images(generate(client))[0], images(generate(client, deliver="fd"))[0]
        memfd = by_fd.memfd
        assert memfd is not None
        assert os.pread(memfd, len(inline.data) + 1, 0) == inline.data
        with pytest.raises(PermissionError):
            os.pwrite(memfd, b"x", 0)
        os.close(memfd)


def test_previews_come_when_asked_for_and_are_pngs(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        answers = generate(client, steps=6, preview_every=2)
    previews = [answer for answer in answers if isinstance(answer.event, Preview)]
    assert [answer.event.step for answer in previews if isinstance(answer.event, Preview)] == [2, 4, 6]
    assert pixels(previews[0]).shape == (128, 128, 3)


@pytest.mark.parametrize("scheduler", FAMILIES["sd1"].schedulers)
def test_every_scheduler_runs_in_the_locked_down_worker(shared_daemon: Daemon, scheduler: str) -> None:
    with shared_daemon.client() as client:
        if scheduler in RULED_OUT:
            with pytest.raises(WeaveError, match="rules out"):
                generate(client, scheduler=scheduler, steps=8)
        else:
            assert pixels(images(generate(client, scheduler=scheduler, steps=8))[0]).std() > 0


def test_a_config_without_models_gives_the_no_model_error() -> None:
    daemon = Daemon("[models]\n").wait_until_serving()
    try:
        with daemon.client() as client, pytest.raises(WeaveError, match="has no model") as refused:
            generate(client, model=None)
        assert refused.value.code is ErrorCode.NO_MODEL
    finally:
        daemon.stop()


def test_a_request_without_model_uses_the_loaded_or_default_one() -> None:
    one, two = (MODEL.replace("models.shapes", f"models.{name}") for name in ("one", "two"))
    daemon = Daemon(f'default_model = "two"\n{one}{two}').wait_until_serving()
    try:
        with daemon.client() as client:
            assert list(client.generate(PROMPT, steps=1))[-1].event.model == "two"
            client.load_model("one")
            assert list(client.generate(PROMPT, steps=1))[-1].event.model == "one"
    finally:
        daemon.stop()


def test_unload_ends_the_worker(daemon: Daemon) -> None:
    with daemon.client() as client:
        assert client.load_model("shapes").model == "shapes"
        assert client.status().worker == "idle" and client.status().memory_used
        assert images(generate(client, model=None))
        worker = daemon.pid_of("worker")
        client.unload()
        assert client.status().model is None
        wait_for(lambda: not os.path.exists(f"/proc/{worker}"), seconds=5)  # it has exited; the zygote reaps it


def test_an_idle_worker_is_unloaded() -> None:
    from tests.support.daemon import DEMO_MODEL

    small = "{ min = 64, max = 64 }"
    daemon = Daemon(f"""
        [limits]
        idle_unload_seconds = 0.5
        [models.shapes]
        path = "{DEMO_MODEL}"
        family = "sd1"
        bounds = {{ width = {small}, height = {small} }}
        defaults = {{ width = 64, height = 64 }}
    """).wait_until_serving()
    try:
        with daemon.client() as client:
            generate(client)
            wait_for(lambda: client.status().worker == "none")
            wait_for(lambda: "worker" not in daemon.processes().values())  # the zygote reaps it
            assert images(generate(client))
    finally:
        daemon.stop()


def test_many_requests_on_one_connection_interleave() -> None:
    daemon = Daemon().wait_until_serving()

    async def main() -> list[bytes]:
        async with AsyncClient(daemon.socket) as client:

            async def one(seed: int) -> bytes:
                answers = [a async for a in client.generate(PROMPT, model="shapes", steps=4, seed=seed)]
                return images(answers)[0].data

            drawing = asyncio.gather(*(one(seed % 3) for seed in range(9)))
            await asyncio.sleep(0)
            assert (await client.status()).version
            return await drawing

    try:
        generated = asyncio.run(main())
        assert len(set(generated)) == 3 and generated[:3] * 3 == generated
    finally:
        daemon.stop()
