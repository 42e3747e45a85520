"""A compromised worker against the broker's real link: every message out of turn is a violation."""

import asyncio
import os
from collections.abc import Callable
from typing import Any, cast

import pytest

from weave.broker.schedule.worker_link import WorkerLink
from weave.protocol.channel import Channel, ChannelViolation, close_all, sealed_memfd, socket_pair
from weave.protocol.client_messages import EncoderTokens, Tokens
from weave.protocol.parameters import Parameters
from weave.protocol.worker_messages import (
    Failed,
    Finished,
    Loaded,
    Made,
    Memory,
    Planned,
    Previewed,
    Progressed,
    Restarted,
    Run,
    TooLarge,
    ToWorker,
)

MEMORY = Memory(1, 2)
PIXELS = 64 * 64 * 3
STEP = (Progressed(job=5, image=0, step=1, steps=2), None)
STEP_2 = (Progressed(job=5, image=0, step=2, steps=2), None)
PREVIEW = (Previewed(job=5, image=0, step=2, width=8, height=8, size=9), 9)
IMAGE = (Made(job=5, image=0, size=PIXELS), PIXELS)
FINISHED = (Finished(job=5, memory=MEMORY), None)
AGAIN = (Restarted(job=5, plan="stages"), None)


def finished(encoder: str = "text_encoder", used: int = 1, cut: int = 0, times: int = 1) -> tuple[Any, Any]:
    one = EncoderTokens(encoder=cast(Any, encoder), used=used, cut=cut)
    return (Finished(job=5, memory=MEMORY, tokens=Tokens(prompt=(one,) * times)), None)


FORGERIES: dict[str, list[tuple[Any, Any]]] = {
    "another job's step": [(Progressed(job=6, image=0, step=1, steps=2), None)],
    "another job's end": [(Finished(job=6, memory=MEMORY), None)],
    "a step twice": [STEP, STEP],
    "a step left out": [(Progressed(job=5, image=0, step=2, steps=2), None)],
    "one step too many": [STEP, STEP_2, (Progressed(job=5, image=0, step=3, steps=2), None)],
    "more steps than requested": [(Progressed(job=5, image=0, step=1, steps=3), None)],
    "another number of steps than before": [STEP, (Progressed(job=5, image=0, step=2, steps=3), None)],
    "a step beyond the number of steps": [(Progressed(job=5, image=0, step=1, steps=0), None)],
    "another image's step": [(Progressed(job=5, image=1, step=1, steps=2), None)],
    "another image": [(Made(job=5, image=1, size=PIXELS), PIXELS)],
    "an image twice": [IMAGE, IMAGE],
    "an image without a memfd": [(IMAGE[0], None)],
    "a memfd with a step": [(STEP[0], PIXELS)],
    "a memfd with the end": [IMAGE, (FINISHED[0], PIXELS)],
    "an image of another size": [(Made(job=5, image=0, size=PIXELS + 3), PIXELS + 3)],
    "an image of a huge size": [(Made(job=5, image=0, size=2**40), PIXELS)],
    "an image of a negative size": [(Made(job=5, image=0, size=-1), PIXELS)],
    "a memfd shorter than announced": [(IMAGE[0], PIXELS - 1)],
    "an unsealed memfd": [(IMAGE[0], "unsealed")],
    "a preview that was not requested": [STEP, (Previewed(job=5, image=0, step=1, width=8, height=8, size=9), 9)],
    "a preview twice": [STEP, STEP_2, PREVIEW, PREVIEW],
    "the end before the image": [FINISHED],
    "tokens of an encoder with an escape in its name": [IMAGE, finished(encoder="\x1b[2J")],
    "tokens of an unknown encoder": [IMAGE, finished(encoder="text_encoder_4")],
    "tokens of one encoder twice": [IMAGE, finished(times=2)],
    "a negative number of tokens": [IMAGE, finished(cut=-1)],
    "more tokens than a prompt can have": [IMAGE, finished(used=2**20 + 1)],
    "negative memory": [IMAGE, (Finished(job=5, memory=Memory(-1, 2)), None)],
    "memory beyond 63 bits": [IMAGE, (Finished(job=5, memory=Memory(1, 2**64 - 1)), None)],
    "loaded again": [(Loaded(device="cpu", dtype="float32", memory=MEMORY), None)],
    "a plan while a job runs": [(Planned(plan="card"), None)],
    "a restart of another job": [(Restarted(job=6, plan="stages"), None)],
    "a restart twice": [STEP, AGAIN, AGAIN],
    "a restart in an unknown plan": [(Restarted(job=5, plan=cast(Any, "\x1b[2J")), None)],
    "a restart with a memfd": [(AGAIN[0], 9)],
    "an image again after a restart": [IMAGE, AGAIN, IMAGE],
    "the end before the image, after a restart": [STEP, AGAIN, FINISHED],
    "a job too large by more than 53 bits": [
        (Failed(job=5, reason="too_large", detail="", too_large=TooLarge(2**60, 1, 64, 64)), None)
    ],
    "a job too large, with a size that no image has": [
        (Failed(job=5, reason="too_large", detail="", too_large=TooLarge(2, 1, 2**40, 64)), None)
    ],
    "a failure of loading": [(Failed(job=0, reason="internal", detail=""), None)],
}


def run(messages: list[tuple[Any, Any]]) -> list[Any]:
    """The updates that the broker accepted."""

    async def main() -> list[Any]:
        parameters = Parameters(
            prompt="x",
            negative_prompt="",
            width=64,
            height=64,
            steps=2,
            cfg_scale=1.0,
            seed=1,
            scheduler="ddim",
            images=1,
            format="raw",
            preview_every=2,
        )
        asked = Run(job=5, parameters=parameters)
        ours, theirs = socket_pair()
        link = WorkerLink(1, "m", ours.detach())
        hostile: Channel[ToWorker] = Channel(theirs, ToWorker)
        for message, memfd in messages:
            descriptors = [] if memfd is None else [make_memfd(memfd)]
            hostile.send(message, tuple(descriptors))
            close_all(descriptors)
        updates = []
        try:
            async for update, received in link.run(asked):
                updates.append(update)
                close_all([] if received is None else [received])
        finally:
            link.close()
            hostile.close()
        return updates

    return asyncio.run(main())


def make_memfd(kind: int | str) -> int:
    if isinstance(kind, int):
        return sealed_memfd("x", bytes(kind))
    memfd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.truncate(memfd, PIXELS)
    return memfd


def descriptors_left(action: Callable[[], object]) -> int:
    before = len(os.listdir("/proc/self/fd"))
    action()
    return len(os.listdir("/proc/self/fd")) - before


def test_an_honest_worker_is_believed() -> None:
    said = [STEP, STEP_2, PREVIEW, IMAGE, FINISHED]
    assert run(said) == [message for message, _ in said]


def test_after_a_restart_the_steps_of_an_image_begin_again() -> None:
    said = [STEP, STEP_2, PREVIEW, AGAIN, STEP, STEP_2, PREVIEW, IMAGE, FINISHED]
    assert run(said) == [message for message, _ in said]


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_reply_is_a_violation_and_leaves_no_descriptor(name: str) -> None:
    def forged() -> None:
        with pytest.raises(ChannelViolation):
            run(FORGERIES[name])

    assert descriptors_left(forged) == 0
