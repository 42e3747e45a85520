"""A daemon brought to a stage of its work, damaged there, and checked afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.daemon import Daemon, descriptors_of, wait_for
from tests.support.generation import PROMPT, generate, images
from weave.client import Client, NotRunning, WeaveError
from weave.protocol.client_messages import Event, Generate, Loading, Progress, Unload
from weave.protocol.errors import ErrorCode

STAGES = ("idle", "loaded", "loading", "running", "queued", "unloading")
LONG = Generate(prompt=PROMPT, model="shapes", steps=100, images=8)


@contextmanager
def at_stage(daemon: Daemon, stage: str) -> Iterator[tuple[Client, int | None]]:
    """A client and its request in progress: `idle` has no worker, `loaded` an idle one, `queued` a job behind a running
    one, `unloading` an unload that waits for the running job."""
    with ExitStack() as stack:
        client, other = (stack.enter_context(daemon.client()) for _ in range(2))
        if stage in ("idle", "loading"):
            other.unload()
        if stage == "loaded":
            other.load_model("shapes")
        request = None
        if stage not in ("idle", "loaded"):
            request = client.send(LONG)
            reach(client, request, Loading if stage == "loading" else Progress)
        if stage == "queued":
            other.send(LONG)
        if stage == "unloading":
            other.send(Unload())
        yield client, request


def reach(client: Client, request: int, kind: type[Event]) -> None:
    next(answer for answer in client.answers(request) if isinstance(answer.event, kind))


def end_of(client: Client, request: int | None) -> ErrorCode | str | None:
    """The client's last answer; None if its connection ended or it had sent no request."""
    if request is None:
        return None
    try:
        list(client.answers(request))
    except WeaveError as error:
        return error.code
    except NotRunning:
        return None
    raise AssertionError("the job finished all the same")


def generates_right(daemon: Daemon, expected: bytes) -> bool:
    """Once the daemon serves again: the same image as before, no extra process, and no zombie."""
    with wait_for_client(daemon) as client:
        right = images(generate(client))[0].data == expected
    wait_for(lambda: sorted(daemon.processes().values()) == ["broker", "gpu_worker", "worker"])
    states = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] for pid in daemon.processes()]
    return right and "Z" not in states


def wait_until_alone(daemon: Daemon) -> None:
    """Until the broker has only the listening socket, its two channels, and its event loop's pair."""
    sockets = 4 + ("worker" in daemon.processes().values())
    broker = daemon.pid_of("broker")
    wait_for(lambda: sum(link.startswith("socket:") for link in descriptors_of(broker)) == sockets)


def wait_for_client(daemon: Daemon) -> Client:
    def connect() -> Client | None:
        client = daemon.client()
        try:
            client.status()
        except NotRunning:
            client.close()
            return None
        return client

    client: Client = wait_for(connect)
    return client


def held(daemon: Daemon) -> dict[str, int]:
    """How many descriptors each lasting process holds."""
    found = {**daemon.processes(), daemon.process.pid: "supervisor"}
    return {role: len(descriptors_of(pid)) for pid, role in found.items() if role != "worker"}
