"""A compromised worker sends text with terminal escapes."""

import pytest

from tests.support.builds import daemon_of
from tests.support.daemon import Daemon, wait_for
from tests.support.seams import before, constant, replaced
from weave.client import ProtocolError, WeaveError
from weave.protocol.errors import ErrorCode

HOSTILE = r"cpu\x1b]0;x\x07\x9b31m\u202e"
NAME_DEVICE = f"""
    if type(message).__name__ == "Loaded":
        message = msgspec.structs.replace(message, device="{HOSTILE}")
"""
DEVICE = (before("protocol/channel.py", "Channel.send", NAME_DEVICE),)
UNCHECKED = (constant("protocol/worker_messages.py", "Device", "str"),)
DETAIL = (replaced("gpu_worker/serve.py", "_load", f'raise RuntimeError("{HOSTILE}")'),)


def load(daemon: Daemon) -> ErrorCode | None:
    with daemon.client() as client:
        try:
            client.load_model("shapes")
        except WeaveError as error:
            return error.code
    return None


def test_a_device_name_with_terminal_escapes_ends_the_worker() -> None:
    daemon = daemon_of(DEVICE)
    try:
        assert load(daemon) is ErrorCode.WORKER_FAILED
        (violation,) = wait_for(lambda: daemon.events("worker_violation"))
        assert violation["detail"] == "not a message of this channel: ValidationError"
        with daemon.client() as client:
            assert client.status().device is None
        assert daemon.log().replace("\n", "").isprintable()
    finally:
        daemon.stop()


def test_without_the_brokers_check_the_client_refuses_escapes() -> None:
    daemon = daemon_of(DEVICE + UNCHECKED)
    try:
        assert load(daemon) is None
        with daemon.client() as client, pytest.raises(ProtocolError, match="device"):
            client.status()
    finally:
        daemon.stop()


def test_a_workers_failure_is_logged_with_escapes_shown() -> None:
    daemon = daemon_of(DETAIL)
    try:
        assert load(daemon) is ErrorCode.INTERNAL
        hostile = "cpu\x1b]0;x\x07\x9b31m\u202e"
        wait_for(lambda: hostile in [event["detail"] for event in daemon.events("job_failed")])
        assert daemon.log().replace("\n", "").isprintable()
    finally:
        daemon.stop()
