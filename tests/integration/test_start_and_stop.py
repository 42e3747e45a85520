"""Starting and stopping the daemon, and the death of a process."""

import os
import signal
import stat

import pytest

from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.generation import PROMPT, generate, images
from weave.client import WeaveError
from weave.protocol.client_messages import Progress
from weave.protocol.errors import ErrorCode


def test_the_socket_is_ours_alone(shared_daemon: Daemon) -> None:
    assert stat.S_IMODE(os.stat(shared_daemon.socket).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(shared_daemon.socket.parent).st_mode) == 0o700


def test_a_second_daemon_is_refused_and_the_first_serves_on(shared_daemon: Daemon) -> None:
    second = Daemon(folder=shared_daemon.folder)
    assert second.process.wait(20) == 78
    assert "another weave-compute is running" in second.log()
    with shared_daemon.client() as client:
        assert client.status().version


def test_a_stale_socket_is_replaced_but_a_file_is_not(tmp_path: pytest.TempPathFactory) -> None:
    daemon = Daemon()
    wait_for(lambda: daemon.events("serving"))
    daemon.process.kill()
    daemon.process.wait()
    assert daemon.socket.exists()
    again = Daemon(folder=daemon.folder)
    wait_for(lambda: len(again.events("serving")) == 2)
    with again.client() as client:
        assert client.status().version
    assert again.stop() == 0
    assert not daemon.socket.exists()
    daemon.socket.write_text("not a socket")
    third = Daemon(folder=daemon.folder)
    assert third.process.wait(20) == 78
    assert daemon.socket.read_text() == "not a socket"


def test_sigterm_notifies_clients_and_leaves_nothing(daemon: Daemon) -> None:
    with daemon.client() as client:
        answers = client.generate(PROMPT, model="shapes", steps=100, images=8)
        next(answer for answer in answers if isinstance(answer.event, Progress))
        processes = daemon.processes()
        assert set(processes.values()) == {"broker", "gpu_worker", "worker"}
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(WeaveError) as ended:
            list(answers)
        assert ended.value.code is ErrorCode.SHUTTING_DOWN
    assert daemon.process.wait(20) == 0
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), seconds=5)
    assert not daemon.socket.exists()


def test_no_process_outlives_a_killed_supervisor() -> None:
    daemon = Daemon().wait_until_serving()
    with daemon.client() as client:
        generate(client)
        processes = daemon.processes()
    daemon.process.kill()
    daemon.process.wait()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), seconds=10)


def test_a_reload_takes_effect_only_without_errors() -> None:
    small = "bounds = { width = { min = 64, max = 64 }, height = { min = 64, max = 64 } }"
    model = f'[models.NAME]\npath = "{DEMO_MODEL}"\nfamily = "sd1"\n{small}\ndefaults = {{ width = 64, height = 64 }}\n'
    daemon = Daemon(model.replace("NAME", "one")).wait_until_serving()
    try:
        with daemon.client() as client:
            expected = images(generate(client, model="one"))[0]
            daemon.config.write_text("[models.one]\nfamily = 5\n")
            daemon.process.send_signal(signal.SIGHUP)
            refused = wait_for(lambda: daemon.events("reload_refused"))[0]
            assert "models" in refused["detail"]
            assert images(generate(client, model="one"))[0].data == expected.data
            daemon.config.write_text(model.replace("NAME", "two"))
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda: [model.id for model in client.list_models().models] == ["two"])
            assert images(generate(client, model="two"))
    finally:
        daemon.stop()


def test_a_config_others_can_write_is_refused_with_the_fix() -> None:
    daemon = Daemon(f'[models.one]\npath = "{DEMO_MODEL}"\nfamily = "sd1"\n')
    daemon.stop() if daemon.process.poll() is None else None
    daemon.config.chmod(0o666)
    second = Daemon(folder=daemon.folder)
    assert second.process.wait(20) == 78
    assert f"chmod go-w {daemon.config}" in second.log()


def test_a_slow_client_is_dropped_and_others_do_not_wait() -> None:
    daemon = Daemon("[limits]\nframe_seconds = 0.3\n[models]\n").wait_until_serving()
    try:
        with daemon.connect() as slow:
            slow.sendall(b"WEVE")
            with daemon.client() as client:
                assert client.status().version
            assert slow.recv(1) == b""
        assert wait_for(lambda: daemon.events("client_dropped"))
    finally:
        daemon.stop()
