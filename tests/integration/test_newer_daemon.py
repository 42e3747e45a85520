"""Today's clients with newer and older daemons: docs/protocol.md, "How the protocol grows"."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon
from tests.support.fake_daemon import OFFER, STATUS, FakeDaemon, models
from weave.client import Answer, AsyncClient, Client, ProtocolError, WeaveError
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Done, Image, Progress
from weave.protocol.errors import ErrorCode
from weave.protocol.features import FEATURES

# Events that today's clients do not know; the last looks like one that they do.
NEWS: list[dict[str, Any]] = [
    {"event": "upscaled"},
    {"event": "audio", "size": 3, "deliver": "inline"},
    {"event": "failed", "code": "internal", "message": "no error of the request"},
]
PROGRESS = {"event": "progress", "image": 0, "step": 1, "steps": 1}
IMAGE = {
    "event": "image", "image": 0, "seed": 1, "format": "raw", "deliver": "inline",
    "width": 1, "height": 1, "channels": 3, "size": 3,
}  # fmt: skip
DONE = {"event": "done", "model": "m", "seed": 1}
STRANGE = {"a field": {"of a newer daemon": [1, None]}}


def answered(path: Path, *events: dict[str, Any] | bytes) -> list[list[Answer]]:
    """The answers that each of the two clients gets to a generate."""

    async def all_of(daemon: Path) -> list[Answer]:
        async with AsyncClient(daemon) as client:
            return [answer async for answer in client.generate("x")]

    with FakeDaemon(path, lambda _: list(events)) as daemon:
        with Client(daemon.path, timeout=60) as client:
            first = list(client.generate("x"))
        return [first, asyncio.run(all_of(daemon.path))]


def told(path: Path, event: dict[str, Any], ask: Callable[[Client], Any]) -> Any:
    with FakeDaemon(path, lambda _: [event]) as daemon, Client(daemon.path, timeout=60) as client:
        return ask(client)


def test_events_and_fields_of_a_newer_daemon_are_skipped(tmp_path: Path) -> None:
    known = [PROGRESS | STRANGE, IMAGE | STRANGE, b"abc", DONE | STRANGE]
    said = [*NEWS, known[0], *NEWS, *known[1:3], *NEWS, known[3]]
    for heard in answered(tmp_path / "socket", *said):
        assert [type(answer.event) for answer in heard] == [Progress, Image, Done]
        assert heard[1].data == b"abc"


def test_bytes_after_a_skipped_event_break_the_protocol(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="an image came without an announcement"):
        answered(tmp_path / "socket", NEWS[1], b"abc", DONE)


def test_no_event_comes_between_an_announcement_and_its_bytes(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="something else came"):
        answered(tmp_path / "socket", IMAGE, NEWS[0], b"abc", DONE)


def test_an_unknown_error_code_fails_its_request_with_the_reason(tmp_path: Path) -> None:
    error = {"event": "error", "code": "quota_used_up", "message": "no more today"} | STRANGE

    async def code_of(daemon: Path) -> str:
        async with AsyncClient(daemon) as client:
            with pytest.raises(WeaveError, match="no more today") as refused:
                await client.status()
            return refused.value.code

    with FakeDaemon(tmp_path / "socket", lambda _: [error]) as daemon:
        with Client(daemon.path, timeout=60) as client:
            for _ in range(2):  # the connection stays open
                with pytest.raises(WeaveError, match="no more today") as refused:
                    list(client.generate("x"))
                assert refused.value.code == "quota_used_up"
        assert asyncio.run(code_of(daemon.path)) == "quota_used_up"


def test_a_known_error_code_becomes_its_enum_member(tmp_path: Path) -> None:
    error = {"event": "error", "code": "queue_full", "message": "full"}
    with pytest.raises(WeaveError) as refused:
        told(tmp_path / "socket", error, lambda client: client.status())
    assert refused.value.code is ErrorCode.QUEUE_FULL


def test_states_and_counts_of_a_newer_daemon_are_accepted(tmp_path: Path) -> None:
    job = {"job": 1, "model": "m", "state": "paused", "position": 0}
    metrics = {"errors": {"quota_used_up": 2}, "uploads": 1, "queued_seconds": {"counts": [0] * 11, "sum": 0, "max": 1}}
    newer = STATUS | {"worker": "draining", "jobs": [job | STRANGE], "metrics": metrics} | STRANGE
    report = told(tmp_path / "socket", newer, lambda client: client.status())
    assert (report.worker, report.jobs[0].state) == ("draining", "paused")
    assert report.metrics.errors == {"quota_used_up": 2}


def test_a_model_with_more_tasks_is_accepted(tmp_path: Path) -> None:
    bounds = {**OFFER["bounds"], "strength": {"min": 0, "max": 1}, "width": {"min": 1, "max": 2, "usual": 1}}
    offer = models(tasks=["text-to-image", "image-to-image"], bounds=bounds, **STRANGE)
    (model,) = told(tmp_path / "socket", offer | STRANGE, lambda client: client.list_models()).models
    assert model.tasks == ("text-to-image", "image-to-image")


def test_an_older_daemon_has_no_features_and_its_models_no_tasks(tmp_path: Path) -> None:
    assert "features" not in STATUS and "tasks" not in OFFER
    assert told(tmp_path / "status", STATUS, lambda client: client.status()).features == ()
    (model,) = told(tmp_path / "models", models(), lambda client: client.list_models()).models
    assert model.tasks == ()


def test_the_daemon_lists_its_features_and_weavectl_shows_them(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        assert client.status().features == tuple(FEATURES)
        tasks = [model.tasks for model in client.list_models().models]
    assert tasks == [FAMILIES["sd1"].tasks] and tasks[0][:3] == ("text-to-image", "image-to-image", "inpainting")
    status = json.loads(weavectl(shared_daemon, "--json", "status").stdout)
    assert status["features"] == list(FEATURES)
    listed = json.loads(weavectl(shared_daemon, "--json", "models").stdout)
    assert [tuple(model["tasks"]) for model in listed["models"]] == tasks
