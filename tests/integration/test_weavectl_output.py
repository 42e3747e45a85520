"""Where weavectl writes, and what it shows: each error is one line, and the terminal obeys no text of a daemon."""

import json
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.fake_daemon import STATUS, FakeDaemon, models
from tests.support.generation import PROMPT
from weave.weavectl.image_files import open_image_files
from weave.weavectl.output import UsageError

COMMAND = Path(sys.executable).with_name("weavectl")
DRAW = ("generate", PROMPT, "--model=shapes", "--steps=1")
PNG, PNG_END = b"\x89PNG", b"IEND\xaeB`\x82"


def run(socket: Path, *arguments: Any, **more: Any) -> subprocess.CompletedProcess[bytes]:
    command = [COMMAND, "-s", socket, *arguments]
    done = subprocess.run(command, check=False, timeout=100, **({"capture_output": True} | more))
    assert b"Traceback" not in (done.stderr or b""), done.stderr
    return done


@pytest.fixture
def no_daemon(tmp_path: Path) -> Path:
    """A path without a daemon: the error comes before one is contacted."""
    return tmp_path / "no-socket"


BEFORE: dict[str, tuple[tuple[Any, ...], int, str]] = {
    "not UTF-8": (("generate", b"caf\xe9"), 3, "no-socket"),
    "a folder": (("generate", "x", "-o", "."), 2, ". is a folder"),
    "a folder to be": (("generate", "x", "-o", "new/"), 2, "new/ is a folder"),
    "no name": (("generate", "x", "-o", ""), 2, ". is a folder"),
    "no such folder": (("generate", "x", "-o", "no/a.png"), 1, "no: No such file or directory"),
    "a file as a folder": (("generate", "x", "-o", "file/a.png"), 1, "Not a directory"),
    "a long name": (("generate", "x", "-o", "x" * 300), 1, "File name too long"),
    "a name too long for a number": (("generate", "x", "-o", "x" * 254, "--images=2"), 1, "File name too long"),
    "a file that exists": (("generate", "x", "-o", "file"), 1, "file exists; --force overwrites it"),
    "one of many that exists": (("generate", "x", "-o", "a.png", "--images=9"), 1, "a-7.png exists"),
    "a link with --force": (("generate", "x", "-o", "link", "--force"), 1, "link is not a regular file"),
    "a link to nothing": (("generate", "x", "-o", "dangling"), 1, "dangling exists"),
    "several on standard output": (("generate", "x", "-o", "-", "--images=2"), 2, "takes one image"),
    "previews of a device": (("generate", "x", "-o", "/dev/null", "--preview=1"), 2, "takes one image"),
    "JSON with the image": (("generate", "x", "-o", "-", "--json"), 2, "-o - and --json"),
    "cfg-scale nan": (("generate", "x", "--cfg-scale", "nan"), 2, "'nan' is not a finite number"),
    "cfg-scale inf": (("generate", "x", "--cfg-scale=-inf"), 2, "'-inf' is not a finite number"),
    "no socket": (("--socket", "", "status"), 2, "the path is empty"),
    "no config": (("check-config", "--config", ""), 2, "argument --config: the path is empty"),
    "a terminal's escape": (("status", "a\x1b[31m\x9b1m"), 2, r"a\x1b[31m\x9b1m"),
    "a file that is not UTF-8": (("generate", "x", "-o", b"no\xe9/a.png"), 1, r"no\udce9: No such file"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_invalid_options_fail_before_the_daemon_is_contacted(no_daemon: Path, name: str) -> None:
    arguments, status, message = BEFORE[name]
    folder = no_daemon.parent
    (folder / "file").write_text("kept")
    (folder / "a-7.png").write_text("kept")
    (folder / "link").symlink_to("file")
    (folder / "dangling").symlink_to("nothing")
    done = run(no_daemon, *arguments, cwd=folder)
    assert (done.returncode, message in done.stderr.decode()) == (status, True), done.stderr
    assert (folder / "file").read_text() == (folder / "a-7.png").read_text() == "kept"
    assert {path.name for path in folder.iterdir()} == {"file", "a-7.png", "link", "dangling"}


ASKED: dict[str, tuple[tuple[Any, ...], int, str]] = {
    "not UTF-8": (("generate", b"caf\xe9"), 2, "prompt is not valid Unicode"),
    "too long": (("generate", "x" * 70_000), 2, "it must have at most 65536"),
    "no width": ((*DRAW, "--width=0"), 1, "width is 0; it must be from 64 to 128\n"),
    "an odd width": ((*DRAW, "--width=100"), 1, "width is 100; it must be a multiple of 8, from 64 to 128\n"),
    "a negative seed": ((*DRAW, "--seed", "-1"), 1, "seed is -1; it must be from 0 to 18446744073709551615\n"),
    "a seed of 70 bits": ((*DRAW, f"--seed={2**70}"), 2, "seed is 0x400000000000000000; it must fit 64 bits\n"),
    "no images": ((*DRAW, "--images=0"), 1, "images is 0; it must be from 1 to 8\n"),
    "a million images": ((*DRAW, "--images=1000000"), 1, "images is 1000000; it must be from 1 to 8\n"),
    "more than anybody counts": ((*DRAW, f"--images={10**18}"), 1, f"images is {10**18}; it must be from 1 to 8\n"),
    "steps": ((*DRAW, "--steps=101"), 1, "steps is 101; it must be from 1 to 100\n"),
    "no such model": (("load", "\x1b[31m"), 1, "no such model"),
    "no such job": (("cancel", "-1"), 1, "no such job"),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_refusal_is_printed_once_with_its_bound(shared_daemon: Daemon, tmp_path: Path, name: str) -> None:
    arguments, status, message = ASKED[name]
    done = run(shared_daemon.socket, *arguments, cwd=tmp_path)
    assert (done.returncode, message in done.stderr.decode()) == (status, True), done.stderr
    assert done.stderr.count(b"\n") == 1 and os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_file(shared_daemon: Daemon, tmp_path: Path) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    done = run(shared_daemon.socket, *DRAW, "-o", "a.png", cwd=tmp_path, preexec_fn=little_room)
    assert (done.returncode, done.stderr) == (1, b"weavectl: a.png: File too large\n")
    assert os.listdir(tmp_path) == []
    done = run(shared_daemon.socket, *DRAW, "-o", "/dev/full")
    assert (done.returncode, done.stderr) == (1, b"weavectl: /dev/full: No space left on device\n")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a device node")
def test_a_device_is_written_to_and_not_replaced(shared_daemon: Daemon, tmp_path: Path) -> None:
    node = tmp_path / "null"
    os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    assert run(shared_daemon.socket, *DRAW, "-o", node, "--force").returncode == 0
    assert stat.S_ISCHR(node.stat().st_mode) and os.listdir(tmp_path) == ["null"]


def test_a_pipe_gets_the_image_and_so_does_standard_output(shared_daemon: Daemon, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    assert run(shared_daemon.socket, *DRAW, "--seed=1", "-o", tmp_path / "pipe").returncode == 0
    reader.join(60)
    done = run(shared_daemon.socket, *DRAW, "--seed=1", "-o", "-", cwd=tmp_path)
    assert done.stdout.startswith(PNG) and got == [done.stdout]
    assert b"standard output (seed 1)" in done.stderr
    assert os.listdir(tmp_path) == ["pipe"]


def test_standard_output_has_only_the_image_by_any_name(shared_daemon: Daemon, tmp_path: Path) -> None:
    name = tmp_path / "image"
    for output in ("-", "/dev/stdout", "/dev/fd/1", str(name)):
        with open(name, "wb") as file:
            done = run(shared_daemon.socket, *DRAW, "-o", output, capture_output=False, stdout=file, stderr=-1)
        assert (done.returncode, name.read_bytes()[-8:]) == (0, PNG_END), (output, done.stderr)
    done = run(shared_daemon.socket, *DRAW, "-o", "/dev/stdout")
    assert (done.returncode, done.stdout[:4], done.stdout[-8:]) == (0, PNG, PNG_END)
    assert done.stderr.startswith(b"standard output (seed ")
    assert run(shared_daemon.socket, *DRAW, "-o", "/dev/stdout", "--json").returncode == 2
    with open("/dev/null", "wb") as null:
        assert (
            run(shared_daemon.socket, *DRAW, "-o", "/dev/null", "--json", capture_output=False, stdout=null).returncode
            == 0
        )


def test_messages_go_to_the_file_while_a_terminal_shows_the_bar(shared_daemon: Daemon, tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    with open(tmp_path / "lines", "wb") as lines:
        run(
            shared_daemon.socket,
            *DRAW,
            "-o",
            "a.png",
            cwd=tmp_path,
            capture_output=False,
            stdout=lines,
            stderr=terminal,
        )
    os.close(terminal)
    os.close(ours)
    assert (tmp_path / "lines").read_bytes().startswith(b"a.png (seed ")


def test_a_terminal_without_a_size_shows_the_error(no_daemon: Path) -> None:
    done = run(no_daemon, "status", env=os.environ | {"COLUMNS": "0"})
    assert (done.returncode, b"no-socket: No such file or directory" in done.stderr) == (3, True), done.stderr


def test_a_file_is_as_open_as_the_umask_says(shared_daemon: Daemon, tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        file = tmp_path / f"{umask}.png"
        assert run(shared_daemon.socket, *DRAW, "-o", file, umask=umask).returncode == 0
        assert stat.S_IMODE(file.stat().st_mode) == mode and file.read_bytes().startswith(PNG)


def test_no_link_is_followed_and_no_new_file_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    monkeypatch.setattr("secrets.token_hex", lambda _: "foreseen")
    (tmp_path / ".weave-foreseen").symlink_to(victim)
    files = open_image_files(str(tmp_path / "a.png"), 1, force=False, previews=False)
    with pytest.raises(FileExistsError):
        files.write(0, b"image")
    monkeypatch.undo()
    (tmp_path / "a.png").symlink_to(victim)  # created while the daemon was generating
    with pytest.raises(FileExistsError, match=r"a\.png exists; --force overwrites it"):
        files.write(0, b"image")
    forced = open_image_files(str(tmp_path / "b.png"), 1, force=True, previews=False)
    (tmp_path / "b.png").symlink_to(victim)
    with pytest.raises(FileExistsError, match="not a regular file"):
        forced.write(0, b"image")
    files.close()
    forced.close()
    assert victim.read_text() == "kept"


def test_the_image_replaces_its_preview_in_a_moved_folder_too(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    files = open_image_files(str(tmp_path / "folder/a.png"), 2, force=False, previews=True)
    files.write(1, b"preview")
    (tmp_path / "folder").rename(tmp_path / "moved")
    files.write(1, b"image")
    files.close()
    assert os.listdir(tmp_path / "moved") == ["a-2.png"]
    assert (tmp_path / "moved/a-2.png").read_bytes() == b"image"


def test_without_hard_links_nothing_is_overwritten_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "as FAT says")

    monkeypatch.setattr("os.link", no_links)
    files = open_image_files(str(tmp_path / "a.png"), 1, force=False, previews=False)
    files.write(0, b"image")
    files.close()
    assert (tmp_path / "a.png").read_bytes() == b"image" and os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(FileExistsError):
        open_image_files(str(tmp_path / "a.png"), 1, force=False, previews=False)
    with pytest.raises(UsageError):
        open_image_files(str(tmp_path), 1, force=True, previews=False)


def test_options_may_follow_the_command(shared_daemon: Daemon) -> None:
    for arguments in (("status", "--json"), ("--json", "status"), ("--json", "status", "-s", shared_daemon.socket)):
        assert json.loads(run(shared_daemon.socket, *arguments).stdout)["event"] == "status"
    elsewhere = run(Path("/nonexistent"), "models", "--json", "--socket", shared_daemon.socket)
    assert json.loads(elsewhere.stdout)["models"][0]["id"] == "shapes"


def shell(socket: Path, script: str) -> subprocess.CompletedProcess[bytes]:
    variables = os.environ | {"W": f"{COMMAND} -s {socket}"}
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, check=False, timeout=100)
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr, done.stderr
    return done


def test_a_full_standard_output_is_an_error_a_closed_one_silent(shared_daemon: Daemon, tmp_path: Path) -> None:
    socket = shared_daemon.socket
    closed = shell(socket, "set -o pipefail; $W status | head -c0; echo ${PIPESTATUS[0]}")
    assert closed.stdout in (b"141\n", b"0\n") and closed.stderr == b""
    assert shell(socket, "$W status >&-; echo $?").stdout == b"0\n"
    assert shell(socket, "$W status >&- 2>&- <&-; echo $?").stdout == b"0\n"
    full = shell(socket, "$W status >/dev/full")
    assert full.returncode == 1 and full.stderr == b"weavectl: standard output: No space left on device\n"
    # argparse does not report it if Python does not buffer.
    assert shell(socket, "PYTHONUNBUFFERED= $W --help >/dev/full").returncode == 1
    lost = shell(socket, "$W generate x --steps=1 -o - >&-")
    assert (lost.returncode, lost.stderr) == (1, b"weavectl: standard output: Bad file descriptor\n")


def test_a_terminal_of_few_characters_gets_all_of_the_text(shared_daemon: Daemon, tmp_path: Path) -> None:
    variables = os.environ | {"PYTHONIOENCODING": "ascii", "XDG_CONFIG_HOME": str(tmp_path)}
    done = run(shared_daemon.socket, *DRAW, "-o", "é.png", cwd=tmp_path, env=variables)
    assert rb"\xe9.png (seed" in done.stdout, done
    done = run(shared_daemon.socket, *DRAW, "-o", "è.png", "--json", cwd=tmp_path, env=variables)
    assert json.loads(done.stdout.splitlines()[-2])["file"] == "è.png"


EVIL = "\x1b]0;x\x07\x1b[31m\x9b1m\x7f\u202e[link=x]y[/link]:skull:"
SHOWN = rb"\x1b]0;x\x07\x1b[31m\x9b1m\x7f\u202e[link=x]y[/link]:skull:"


@pytest.mark.parametrize("json_too", [False, True])
def test_the_terminal_shows_but_does_not_obey_a_daemons_text(tmp_path: Path, json_too: bool) -> None:
    error = {"event": "error", "code": "internal", "message": EVIL, "value": EVIL}
    with FakeDaemon(tmp_path / "socket", lambda _: [error]) as daemon:
        for command in (("models",), ("generate", "x")):
            done = run(daemon.path, *command, *(["--json"] if json_too else []), cwd=tmp_path)
            assert done.returncode == 1 and SHOWN in done.stderr
            assert (done.stdout + done.stderr).decode().replace("\n", "").isprintable()
            if json_too:
                assert json.loads(done.stdout)["message"] == EVIL


def test_a_model_name_with_terminal_escapes_is_not_shown(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "socket", lambda _: [models(id=EVIL)]) as daemon:
        done = run(daemon.path, "models")
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"does not speak our protocol" in done.stderr and done.stderr.decode().replace("\n", "").isprintable()


def test_a_listener_that_does_not_answer_is_named(tmp_path: Path) -> None:
    commands = (["status"], ["models"], ["load", "m"], ["unload"], ["cancel", "1"], ["generate", "x"])
    with FakeDaemon(tmp_path / "socket") as silent:
        for command in commands:
            done = run(silent.path, *command, "--timeout=0.3", cwd=tmp_path)
            named = f"(PID {os.getpid()}, UID {os.getuid()}) listens on {silent.path}, but did not answer in 0.3 s"
            assert (done.returncode, named in done.stderr.decode()) == (3, True), done.stderr
        os.chmod(silent.path, 0o755)
        told = run(silent.path, "doctor", "--timeout=0.3").stdout.decode()
    assert f"another program listens, {comm()} (PID {os.getpid()}, UID {os.getuid()})" in told
    assert "of mode" not in told


def comm() -> str:
    return Path("/proc/self/comm").read_text().strip()


def test_a_listener_of_another_protocol_is_named(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "socket", lambda _: [{"event": "loading", "model": "m", "more": 1}]) as other:
        done = run(other.path, "status", "--timeout=2")
        assert done.returncode == 3 and f"(PID {os.getpid()}, ".encode() in done.stderr
        assert b"another program listens" in run(other.path, "doctor", "--timeout=2").stdout


def test_a_listener_that_closes_the_connection_is_named(tmp_path: Path) -> None:
    def close(_: dict[str, Any]) -> list[dict[str, Any]]:
        raise ConnectionAbortedError

    with FakeDaemon(tmp_path / "socket", close) as other:
        done = run(other.path, "status")
    assert done.returncode == 3
    assert (
        f"(PID {os.getpid()}, UID {os.getuid()}) listens on {other.path}, but closed the connection".encode()
        in done.stderr
    )


def test_a_socket_of_another_kind_is_not_blamed_on_a_group(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "socket"))
        told = run(tmp_path / "socket", "doctor").stdout.decode()
    assert "wrong type for socket; weave-compute does not listen there; give it or weave-compute another socket" in told
    assert "group" not in told.splitlines()[0]


def test_a_dead_socket_and_a_full_backlog_differ_in_the_error(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "socket") as gone:
        pass
    assert b"no process listens on it" in run(gone.path, "doctor").stdout


def test_a_job_may_wait_for_longer_than_the_first_answer(tmp_path: Path) -> None:
    """The fake daemon loads its model after a while."""

    def slow() -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
        def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
            if request["op"] == "load_model":
                threading.Event().wait(4)
                return [{"event": "done", "model": "m"}]
            return [STATUS]

        return answer

    with FakeDaemon(tmp_path / "socket", slow()) as daemon:
        assert run(daemon.path, "load", "m", "--timeout=3").stdout == b"m is loaded\n"


def test_totals_hidden_from_this_user_are_not_shown(tmp_path: Path) -> None:
    """In system mode only root sees them. Other users get 0, which would be wrong as a count."""
    for requests in (0, 1):
        status = STATUS | {"mode": "system", "metrics": {"requests": requests}}
        with FakeDaemon(tmp_path / f"socket-{requests}", lambda _, status=status: [status]) as daemon:
            done = run(daemon.path, "status")
        assert (b"0 images; 0 errors" in done.stdout, b"restarted 0 times" in done.stdout) == (
            requests > 0,
            requests > 0,
        )
