"""Attached mode: the client's model is loaded ahead and stays loaded."""

import os
import shutil
import signal
import socket
import time
from typing import Any

from tests.integration.test_attached import Owner
from tests.support.daemon import DEMO_MODEL, wait_for
from tests.support.system import MODEL
from tests.support.wire import receive_2, send_2


def events_of_an_image(connection: socket.socket) -> list[str]:
    send_2(connection, {"op": "generate", "model": "shapes", "prompt": "x", "steps": 1, "deliver": "fd"})
    events: list[str] = []
    while not events or events[-1] not in ("done", "error"):
        events.append(receive_2(connection)["event"])
    return events


def status_of(connection: socket.socket) -> dict[str, Any]:
    send_2(connection, {"op": "status"})
    return receive_2(connection)


def test_the_default_model_is_loaded_ahead_and_stays_loaded() -> None:
    owner = Owner(config="[limits]\nidle_unload_seconds = 0.2\n" + MODEL)
    try:
        with owner.accept() as connection:
            (loaded,) = wait_for(lambda: owner.daemon.events("model_loaded"))
            assert (loaded["model"], loaded["ahead"]) == ("shapes", True)
            wait_for(lambda: status_of(connection)["worker"] == "idle")
            assert "loading" not in events_of_an_image(connection)
            time.sleep(1)
            status = status_of(connection)
            assert (status["worker"], status["model"], status["metrics"]["models_loaded"]) == ("idle", "shapes", 1)
            # Unload returns the memory, until the next request for an image.
            send_2(connection, {"op": "unload"})
            assert receive_2(connection)["event"] == "done"
            assert status_of(connection)["worker"] == "none"
            assert "loading" in events_of_an_image(connection)
        assert owner.all_gone([])
    finally:
        owner.daemon.process.kill()
        owner.listening.close()


def test_load_ahead_repeats_after_a_reload_and_a_lost_worker() -> None:
    owner = Owner(config=MODEL)
    daemon = owner.daemon

    def times_loaded() -> int:
        return len([line for line in daemon.events("model_loaded") if line.get("ahead")])

    try:
        with owner.accept() as connection:
            wait_for(lambda: times_loaded() == 1)
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda: times_loaded() == 2)
            send_2(connection, {"op": "generate", "model": "shapes", "prompt": "x", "steps": 100, "images": 8})
            while receive_2(connection)["event"] != "progress":
                pass
            os.kill(daemon.pid_of("worker"), signal.SIGKILL)
            while (event := receive_2(connection))["event"] != "error":
                pass
            assert event["code"] == "worker_failed"
            wait_for(lambda: times_loaded() == 3)
            assert "loading" not in events_of_an_image(connection)
        assert owner.all_gone([])
    finally:
        daemon.process.kill()
        owner.listening.close()


def test_load_ahead_repeats_after_a_reload_during_a_job() -> None:
    owner = Owner(config=MODEL)
    daemon = owner.daemon
    try:
        with owner.accept() as connection:
            send_2(
                connection, {"op": "generate", "model": "shapes", "prompt": "x", "steps": 100, "images": 8}, request=9
            )
            while receive_2(connection)["event"] != "progress":
                pass
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda: daemon.events("reloaded"))
            send_2(connection, {"op": "cancel", "request": 9})
            while receive_2(connection)["event"] != "error":
                pass
            loaded = len(daemon.events("model_loaded"))
            wait_for(lambda: len(daemon.events("model_loaded")) == loaded + 1)
            assert daemon.events("model_loaded")[-1]["ahead"] is True
            assert "loading" not in events_of_an_image(connection)
        assert owner.all_gone([])
    finally:
        daemon.process.kill()
        owner.listening.close()


def test_a_failed_load_ahead_is_retried_by_the_next_request() -> None:
    owner = Owner(config=MODEL.replace(str(DEMO_MODEL), "model"))
    model = owner.folder / "weave" / "model"
    try:
        with owner.accept() as connection:
            (failed,) = wait_for(lambda: owner.daemon.events("load_ahead_failed"))
            assert failed["model"] == "shapes" and failed["detail"]
            assert events_of_an_image(connection)[-1] == "error"
            shutil.copytree(DEMO_MODEL, model)
            assert events_of_an_image(connection)[-1] == "done"
        assert owner.all_gone([])
    finally:
        owner.daemon.process.kill()
        owner.listening.close()
