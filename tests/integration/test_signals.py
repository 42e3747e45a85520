"""The daemon and the tests set their own signals, though what starts them may ignore or block all of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate
from tests.support.processes import children

ROOT = Path(__file__).resolve().parents[2]
STARTED_BADLY = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
os.execvp(sys.argv[1], sys.argv[1:])
"""
PRINT_SIGNALS_OF_A_CHILD = """
import subprocess
from tests.support.processes import reset_signals
reset_signals()
print(subprocess.run(["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"], capture_output=True, text=True).stdout)
"""


def test_a_child_has_default_signals_though_pytest_ignores_them() -> None:
    command = [sys.executable, "-c", STARTED_BADLY, sys.executable, "-c", PRINT_SIGNALS_OF_A_CHILD]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    _, blocked, _, ignored = said.split()
    # 32 and 33 are libc's own, and posix_spawn(3), which make uses, leaves them ignored (nptl(7)).
    assert int(blocked, 16) == 0 and int(ignored, 16) & ~(0b11 << 31) == 0


def test_a_daemon_started_with_signals_blocked_obeys_sigterm() -> None:
    daemon = Daemon(prefix=(sys.executable, "-c", STARTED_BADLY)).wait_until_serving()
    os.kill(daemon.pid_of("broker"), signal.SIGKILL)
    wait_for(lambda: len(daemon.events("serving")) == 2)
    assert [line["cause"] for line in daemon.events("broker_ended")] == ["signal SIGKILL"]
    with daemon.client() as client:
        generate(client)
        os.kill(daemon.pid_of("worker"), signal.SIGKILL)
        wait_for(lambda: daemon.events("worker_ended"))
        generate(client)  # the zygote has reaped its child too
    assert daemon.stop() == 0


def test_sigint_stops_a_daemon_not_started_with_it_ignored() -> None:
    in_background = Daemon(prefix=("sh", "-c", '"$@" & wait', "sh")).wait_until_serving()
    (supervisor,) = children(in_background.process.pid)
    os.kill(supervisor, signal.SIGINT)
    with in_background.client() as client:
        assert client.status().version
    daemon = Daemon().wait_until_serving()
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(60) == 0
    with in_background.client() as client:
        assert client.status().version
    os.kill(supervisor, signal.SIGTERM)
    assert in_background.process.wait(60) == 0
