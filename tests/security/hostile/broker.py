"""A compromised broker in place of the honest one: against the supervisor, and against a worker."""

import array
import asyncio
import math
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
from msgspec import structs

from weave import log
from weave.config.child_configs import BrokerConfig
from weave.protocol.channel import Channel, ChannelClosed, MemfdWriter, close_all
from weave.protocol.control_messages import (
    Alive,
    Exited,
    LockedDown,
    Ping,
    StartWorker,
    StopWorker,
    ToBroker,
    WorkerEnded,
    WorkerStarted,
)
from weave.protocol.inputs import InputImage, RequestedControl
from weave.protocol.loras import RequestedLora
from weave.protocol.metrics import Metrics
from weave.protocol.parameters import Enlarge, Parameters
from weave.protocol.waiting import receive
from weave.protocol.worker_messages import CancelRun, Finished, FromWorker, Load, Memory, Run

REFUSED = "refused by the kernel"
DEVICE = "auto"  # the one of a config that names none
Supervisor = Channel[ToBroker]
ALIVE = Alive(metrics=Metrics(), connections=0, queue_length=0)
GOOD = Parameters(
    prompt="x",
    negative_prompt="",
    width=64,
    height=64,
    steps=2,
    cfg_scale=3.0,
    seed=1,
    images=1,
    scheduler="ddim",
    format="png",
    preview_every=0,
)


def raw(channel: Channel[Any], data: bytes, descriptors: int = 0) -> None:
    """Without the checks of the sending side."""
    rights = array.array("i", [1] * descriptors)
    channel._sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])


def two_workers(supervisor: Supervisor) -> None:
    supervisor.send(StartWorker(worker=1, model="shapes", device=DEVICE))
    supervisor.send(StartWorker(worker=2, model="shapes", device=DEVICE))


def one_number_twice(supervisor: Supervisor) -> None:
    """On another device, so that only the number is taken."""
    supervisor.send(StartWorker(worker=1, model="shapes", device=DEVICE))
    supervisor.send(StartWorker(worker=1, model="shapes", device="cpu"))


# A reason that a reader of the audit would believe, had the supervisor written it.
FORGED_REASON = "approved by the administrator"


def a_forged_reason(supervisor: Supervisor) -> None:
    supervisor.send(StartWorker(worker=1, model="shapes", device=DEVICE))
    supervisor.send(StopWorker(worker=1, reason=cast(Any, FORGED_REASON)))


def an_unknown_field(supervisor: Supervisor) -> None:
    """A decoder's error would quote its name."""
    raw(supervisor, msgspec.msgpack.encode({"type": "stop_worker", "worker": 1, FORGED_REASON: ""}))


def alive_twice(supervisor: Supervisor) -> None:
    """A single Alive may be the answer to a Ping."""
    supervisor.send(ALIVE)
    supervisor.send(ALIVE)


async def metrics_of_another_shape(supervisor: Supervisor) -> None:
    while not isinstance((await receive(supervisor))[0], Ping):
        pass
    message = msgspec.msgpack.decode(msgspec.msgpack.encode(ALIVE))
    message["metrics"]["queued_seconds"]["counts"] = [1]
    raw(supervisor, msgspec.msgpack.encode(message))


# Each breaks the protocol, which the supervisor must see.
FORGERIES: dict[str, Callable[[Supervisor], Any]] = {
    "a second worker": two_workers,
    "a worker's number twice": one_number_twice,
    "a forged reason": a_forged_reason,
    "an unknown field": an_unknown_field,
    "a negative worker": lambda supervisor: supervisor.send(StopWorker(worker=-1, reason="unload")),
    "less than no connections": lambda supervisor: supervisor.send(structs.replace(ALIVE, connections=-1)),
    "locked down again": lambda supervisor: supervisor.send(LockedDown(layers=())),
    "alive without a ping": alive_twice,
    "the zygote's message": lambda supervisor: supervisor.send(Exited(worker=1, pid=1, status=0)),
    "the supervisor's own message": lambda supervisor: supervisor.send(WorkerEnded(worker=1, cause="")),
    "not msgpack": lambda supervisor: raw(supervisor, b"\xc1"),
    "deep nesting": lambda supervisor: raw(supervisor, b"\x91" * 100_000),
    "a giant message": lambda supervisor: raw(supervisor, bytes(200_000)),
    "a request with a descriptor": lambda supervisor: raw(
        supervisor, msgspec.msgpack.encode(StopWorker(worker=1, reason="unload")), 1
    ),
    "a hundred descriptors": lambda supervisor: raw(supervisor, b"\x80", 100),
    "metrics of another shape": metrics_of_another_shape,
}


async def a_model_that_is_not_in_the_list(supervisor: Supervisor) -> str:
    supervisor.send(StartWorker(worker=1, model="../../etc", device=DEVICE))
    while True:
        message, _ = await receive(supervisor)
        if isinstance(message, WorkerEnded):
            return message.cause


async def devices_that_are_not_in_the_list(supervisor: Supervisor) -> str:
    """One worker for each device of the config, and for no other, whatever it is named."""
    causes = set()
    for number, device in enumerate(("cpu", "cpu:0", "cuda:0", "auto ", "", "../auto", "x" * 10_000)):
        supervisor.send(StartWorker(worker=number, model="shapes", device=device))
        message, _ = await receive(supervisor)
        causes.add(message.cause if isinstance(message, WorkerEnded) else type(message).__name__)
    return str(causes)


async def the_end_of_another_worker(supervisor: Supervisor) -> str:
    """It can end only its own workers, by number: not the supervisor, nor another process."""
    for number in (0, 2, 4000, 2**40):
        supervisor.send(StopWorker(worker=number, reason="unload"))
    return type((await receive(supervisor))[0]).__name__


async def a_flood_of_requests(supervisor: Supervisor) -> str:
    ended = 0
    for number in range(300):
        supervisor.send(StartWorker(worker=number, model="none", device=DEVICE))
        while not isinstance((await receive(supervisor))[0], WorkerEnded):
            pass
        ended += 1
    return f"{ended} answered"


# Requests that the supervisor answers without harm.
REQUESTS: dict[str, tuple[Callable[[Supervisor], Awaitable[str]], str]] = {
    "a model that is not in the list": (a_model_that_is_not_in_the_list, "the model is no longer in the config"),
    "devices that are not in the list": (
        devices_that_are_not_in_the_list,
        "{'the device is no longer in the config'}",
    ),
    "the end of another worker": (the_end_of_another_worker, "Ping"),
    "a flood of requests": (a_flood_of_requests, "300 answered"),
}


def run_of(job: int = 1, **changed: Any) -> Run:
    return Run(job=job, parameters=structs.replace(GOOD, **changed))


IMAGE = InputImage(width=64, height=64)


def memfd(size: int = IMAGE.size, *, sealed: bool = True) -> int:
    writer = MemfdWriter("weave-input")
    writer.write(memoryview(bytes(size)))
    return writer.seal() if sealed else writer._descriptor


def with_images(worker: Channel[FromWorker], *descriptors: int, message: Run | Load | CancelRun | None = None) -> None:
    """A run that announces one image, or another message, with these descriptors."""
    worker.send(message or run_of(image=IMAGE), descriptors)
    close_all([descriptor for descriptor in descriptors if descriptor > 2])


def with_a_socket(worker: Channel[FromWorker]) -> None:
    worker.send(run_of(image=IMAGE), (worker.fileno(),))


# Messages to a worker, whether after Load, and the outcome.
TO_WORKER: dict[str, tuple[bool, Callable[[Channel[FromWorker]], Any], str]] = {
    "a good request": (True, lambda worker: worker.send(run_of()), "finished"),
    "a run before the model": (False, lambda worker: worker.send(run_of()), "ended"),
    "the model twice": (True, lambda worker: worker.send(Load()), "ended"),
    "a message that is not for it": (True, lambda worker: worker.send(Finished(job=1, memory=Memory(1, 2))), "ended"),
    "not msgpack": (True, lambda worker: raw(worker, b"\xc1"), "ended"),
    "deep nesting": (True, lambda worker: raw(worker, b"\x91" * 100_000), "ended"),
    "a giant message": (True, lambda worker: raw(worker, bytes(200_000)), "ended"),
    "descriptors": (True, lambda worker: raw(worker, msgspec.msgpack.encode(run_of()), 2), "ended"),
    "a run in a run": (True, lambda worker: (worker.send(run_of(steps=50)), worker.send(run_of(2))), "ended"),
}
# The same with images, each to a worker of its own.
IMAGES: dict[str, tuple[bool, Callable[[Channel[FromWorker]], Any], str]] = {
    "an image": (True, lambda worker: with_images(worker, memfd()), "finished"),
    "no image for one": (True, with_images, "ended"),
    "two images for one": (True, lambda worker: with_images(worker, memfd(), memfd()), "ended"),
    "eleven images": (True, lambda worker: with_images(worker, *(memfd() for _ in range(11))), "ended"),
    "an image for none": (True, lambda worker: with_images(worker, memfd(), message=run_of()), "ended"),
    "an image that can change": (True, lambda worker: with_images(worker, memfd(sealed=False)), "ended"),
    "an image too short": (True, lambda worker: with_images(worker, memfd(IMAGE.size - 1)), "ended"),
    "an image too long": (True, lambda worker: with_images(worker, memfd(IMAGE.size + 1)), "ended"),
    "a pipe for an image": (True, lambda worker: with_images(worker, 2), "ended"),
    "a socket for an image": (True, with_a_socket, "ended"),
    "an image with the model": (False, lambda worker: with_images(worker, memfd(), message=Load()), "ended"),
    "an image with a cancel": (True, lambda worker: with_images(worker, memfd(), message=CancelRun(job=1)), "ended"),
}
# Runs out of bounds, each of which the worker refuses. It lives on.
BAD_RUNS: dict[str, Run] = {
    "steps": run_of(steps=10**6),
    "no steps": run_of(steps=0),
    "width": run_of(width=2**31),
    "height": run_of(height=-64),
    "images": run_of(images=10**9),
    "seed": run_of(seed=-1),
    "cfg_scale": run_of(cfg_scale=math.nan),
    "scheduler": run_of(scheduler="os.system"),
    "prompt": run_of(prompt="x" * 100_000),
    "prompts of the encoders": run_of(encoder_prompts=("x" * 10_000, "y", "z")),
    "preview_every": run_of(preview_every=-1),
    "a LoRA that is not listed": run_of(loras=(RequestedLora("/etc/passwd"),)),
    "many LoRAs": run_of(loras=(RequestedLora("x"),) * 1000),
    "an embedding that is not listed": run_of(embeddings=("/etc/passwd",)),
    "many embeddings": run_of(embeddings=("x",) * 1000),
    "an image without pixels": run_of(image=InputImage(width=0, height=64)),
    "negative sides with a positive product": run_of(image=InputImage(width=-64, height=-64)),
    "an image of 2^62 pixels": run_of(image=InputImage(width=2**31, height=2**31)),
    "a mask alone": run_of(mask=IMAGE),
    "a mask of another size": run_of(image=IMAGE, mask=InputImage(width=32, height=32)),
    "strength": run_of(image=IMAGE, strength=math.nan),
    "a thousand references": run_of(references=(IMAGE,) * 1000),
    "references for this model": run_of(references=(IMAGE,)),
    "a ControlNet that is not listed": run_of(control=(RequestedControl(id="/etc/passwd", image=IMAGE),)),
    "a hundred ControlNets": run_of(control=(RequestedControl(id="x", image=IMAGE),) * 100),
    "a large second pass": run_of(enlarge=Enlarge(scale=1e9)),
    "a large batch": run_of(batch=10**6),
}


async def answer_pings(supervisor: Supervisor) -> None:
    """Without it the supervisor would kill this broker as hung while a slow worker loads."""
    while True:
        message, _ = await receive(supervisor)
        if isinstance(message, Ping):
            supervisor.send(ALIVE)


async def new_worker(supervisor: Supervisor, number: int = 1) -> Channel[FromWorker]:
    supervisor.send(StartWorker(worker=number, model="shapes", device=DEVICE))
    while True:
        message, descriptors = await receive(supervisor)
        if isinstance(message, WorkerStarted):
            break
        if isinstance(message, Ping):
            supervisor.send(ALIVE)
    worker: Channel[FromWorker] = Channel.from_fd(descriptors[0], FromWorker)
    worker.set_blocking(False)
    return worker


async def load(worker: Channel[FromWorker]) -> None:
    worker.send(Load())
    await receive(worker)


async def outcome_of(worker: Channel[FromWorker]) -> str:
    try:
        while True:
            answer, _ = await receive(worker)
            if hasattr(answer, "reason"):
                return str(answer.reason)
            if isinstance(answer, Finished):
                return "finished"
    except ChannelClosed:
        return "ended"


async def against_worker(supervisor: Supervisor, name: str, number: int = 1) -> str:
    after_load, attack, _ = (TO_WORKER | IMAGES)[name]
    worker = await new_worker(supervisor, number)
    pings = asyncio.create_task(answer_pings(supervisor))
    if after_load:
        await load(worker)
    attack(worker)
    outcome = await outcome_of(worker)
    pings.cancel()
    return outcome


async def with_bad_images(supervisor: Supervisor) -> dict[str, str]:
    """The outcome of each."""
    outcomes = {}
    for number, name in enumerate(IMAGES, 1):
        outcomes[name] = await against_worker(supervisor, name, number)
        supervisor.send(StopWorker(worker=number, reason="unload"))
        while not isinstance((await receive(supervisor))[0], WorkerEnded):
            pass
    return outcomes


async def bad_runs(supervisor: Supervisor) -> dict[str, str]:
    """The outcome of each, all of one worker."""
    worker = await new_worker(supervisor)
    pings = asyncio.create_task(answer_pings(supervisor))
    await load(worker)
    outcomes = {}
    for name, run in BAD_RUNS.items():
        worker.send(run)
        outcomes[name] = await outcome_of(worker)
    pings.cancel()
    return outcomes


async def forge(supervisor: Supervisor, attack: str) -> str:
    try:
        forged = FORGERIES[attack](supervisor)
        if forged is not None:
            await forged
    except PermissionError:
        return REFUSED
    return "sent"


async def run(name: str, supervisor: Supervisor, _: BrokerConfig) -> None:
    """Attack, log the outcome, and wait to be killed."""
    kind, _, attack = name.partition(": ")
    outcome: str | dict[str, str]
    if kind == "worker":
        outcome = await against_worker(supervisor, attack)
    elif kind == "images":
        outcome = await with_bad_images(supervisor)
    elif kind == "bad runs":
        outcome = await bad_runs(supervisor)
    elif kind == "request":
        outcome = await REQUESTS[attack][0](supervisor)
    elif kind == "call":
        outcome = f"got {os.getpgid(0)}"
    elif kind == "silence":
        outcome = "silent"
    else:
        outcome = await forge(supervisor, attack)
    log.write("broker", "attacked", outcome=outcome)
    if kind in ("worker", "images", "bad runs", "request") or outcome == REFUSED:
        return
    await asyncio.Event().wait()
