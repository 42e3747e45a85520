"""The log, the audit and the metrics; and which lines a child cannot write to them."""

import asyncio
import json
import os
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT, generate
from tests.support.system import MODEL
from weave import log
from weave.client import WeaveError
from weave.supervisor.children import stderr_relay as relay


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_audit_file_is_reopened_and_never_holds_a_prompt() -> None:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    path = folder / "audit.log"
    daemon = Daemon(f'[audit]\nfile = "{path}"\n' + MODEL, folder=folder).wait_until_serving()
    try:
        with daemon.client() as client:
            generate(client)
            with pytest.raises(WeaveError):
                generate(client, width=65)
            wait_for(lambda: daemon.events("request_refused"))
            path.rename(folder / "audit.log.1")
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda: daemon.events("reloaded"))
            with pytest.raises(WeaveError):
                generate(client, width=66)
            wait_for(lambda: len(daemon.events("request_refused")) == 2)
    finally:
        daemon.stop()
    events = [line["event"] for line in lines_of(folder / "audit.log.1")]
    assert events == ["serving", "model_loaded", "request_refused"]
    first = lines_of(folder / "audit.log.1")[-1]
    assert first["peer"] == {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()}
    assert (first["code"], first["field"]) == ("out_of_bounds", "width") and first["time"].endswith("Z")
    assert {line["event"] for line in lines_of(path)} == {"reloaded", "worker_ended", "request_refused"}
    assert path.stat().st_mode & 0o777 == 0o640
    assert PROMPT not in daemon.log() + path.read_text() + (folder / "audit.log.1").read_text()


def test_prompts_are_in_the_log_only_where_the_config_says_so() -> None:
    daemon = Daemon("[audit]\nprompts = true\n" + MODEL).wait_until_serving()
    try:
        with daemon.client() as client:
            generate(client)
        assert wait_for(lambda: daemon.events("generate"))[0]["prompt"] == PROMPT
    finally:
        daemon.stop()


def test_hitting_a_limit_is_audited_with_its_code() -> None:
    daemon = Daemon("[limits]\nrequests_per_second = 0.01\nburst_per_uid = 1\n" + MODEL).wait_until_serving()
    try:
        with daemon.client() as client:
            generate(client)
            with pytest.raises(WeaveError) as limited:
                generate(client)
        assert 0 < (limited.value.error.retry_after or 0) <= 100
        assert wait_for(lambda: daemon.events("request_refused"))[0]["code"] == "rate_limited"
    finally:
        daemon.stop()


def test_status_counts_what_happened(daemon: Daemon) -> None:
    with daemon.client() as client:
        generate(client)
        generate(client)
        with pytest.raises(WeaveError):
            generate(client, steps=0)
        metrics = client.status().metrics
    assert (metrics.connections, metrics.images, metrics.models_loaded) == (1, 2, 1)
    assert metrics.errors == {"out_of_bounds": 1}
    assert sum(metrics.generating_seconds.counts) == 2 and metrics.generating_seconds.sum > 0


SAMPLE = re.compile(r'[a-z_]+(\{(le|code)="[^"]+"\})? [0-9.e+-]+')
COMMENT = re.compile(r"# TYPE weave_[a-z_]+ (counter|gauge|histogram)")


def test_the_metrics_file_is_what_a_collector_reads() -> None:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    path = folder / "weave.prom"
    daemon = Daemon(f'[metrics]\nfile = "{path}"\n' + MODEL, folder=folder).wait_until_serving()
    try:
        with daemon.client() as client:
            generate(client)
            text = wait_for(lambda: "weave_images_total 1\n" in path.read_text() and path.read_text())
    finally:
        daemon.stop()
    assert all(SAMPLE.fullmatch(line) or COMMENT.fullmatch(line) for line in text.splitlines())
    assert 'weave_generating_seconds_bucket{le="+Inf"} 1\n' in text and "weave_connections 1\n" in text
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in folder.iterdir() if "part" in entry.name] == []


def relayed(data: bytes, capfd: pytest.CaptureFixture[str], *, audited: bool = False) -> list[dict[str, Any]]:
    async def main() -> None:
        reading, writing = relay.stderr_pipe()
        relaying = asyncio.create_task(relay.relay("gpu_worker", reading, audited=audited))
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(writing, view) :]
            except BlockingIOError:
                await asyncio.sleep(0.01)
        os.close(writing)
        await relaying
        os.close(reading)

    asyncio.run(main())
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_a_child_cannot_speak_for_another_process_or_time(capfd: pytest.CaptureFixture[str]) -> None:
    forged = b'{"time":"1999-01-01T00:00:00Z","process":"supervisor","event":"worker_started","worker":7}\n'
    (line,) = relayed(forged, capfd)
    assert (line["process"], line["event"], line["worker"]) == ("gpu_worker", "worker_started", 7)
    assert not line["time"].startswith("1999")


@pytest.mark.parametrize("raw", [b"plain words", b"[1]", b'{"no":"event"}', b"\xff\xfe", b"[" * 15_000, b'{"event":'])
def test_a_line_not_in_log_format_is_kept_as_text(capfd: pytest.CaptureFixture[str], raw: bytes) -> None:
    (line,) = relayed(raw, capfd)
    assert line["event"] == "stderr" and line["text"] == raw.decode(errors="replace")[-2000:]


def test_an_endless_line_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    lines = relayed(b"x" * 1_000_000, capfd)
    assert 0 < len(lines) <= 1_000_000 // (16 * 1024) + 1


def test_a_child_that_floods_the_log_is_read_slowly(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_WINDOW_SECONDS", 0.2)
    monkeypatch.setattr(relay, "_LINES_PER_WINDOW", 10)
    lines = relayed(b"flood\n" * 30_000, capfd)
    floods = [line for line in lines if line["event"] == "log_flooded"]
    written = [line for line in lines if line["event"] == "stderr"]
    assert floods and len(written) + sum(line["lines"] for line in floods) == 30_000
    assert len(written) <= 10 * (len(floods) + 1)


def test_long_lines_are_a_flood_too(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_WINDOW_SECONDS", 0.2)
    monkeypatch.setattr(relay, "_BYTES_PER_WINDOW", 100_000)
    lines = relayed((b'{"event":"e","many":[' + b'"x",' * 12_000 + b'""]}\n') * 20, capfd)
    assert [line for line in lines if line["event"] == "log_flooded"]
    assert max(len(json.dumps(line)) for line in lines) <= 4096


def test_a_child_writes_only_its_own_events_to_the_audit(tmp_path: Path) -> None:
    async def main(audited: bool) -> None:
        reading, writing = relay.stderr_pipe()
        os.write(writing, b'{"event":"sandbox_violation","of":"worker"}\n{"event":"connection_refused"}\n')
        os.close(writing)
        await relay.relay("child", reading, audited=audited)
        os.close(reading)

    path = tmp_path / "audit.log"
    folder = os.open(tmp_path, os.O_DIRECTORY)
    log.open_audit(folder, path.name)
    os.close(folder)
    try:
        asyncio.run(main(False))
        assert path.read_text() == ""
        asyncio.run(main(True))
        # Not the supervisor's events, not even in the child's own name.
        assert [line["event"] for line in lines_of(path)] == ["connection_refused"]
    finally:
        log.open_audit(None, "")


@pytest.mark.parametrize("make_full", ["a pipe without a reader", "a full disk"])
def test_lines_beyond_the_buffer_are_dropped_and_counted(make_full: str) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    target = writing if make_full == "a pipe without a reader" else os.open("/dev/full", os.O_WRONLY)
    sink = log._Sink(target)
    for _ in range(200):
        sink.write(b"x" * 1000 + b"\n")
    sink.descriptor = writing
    os.set_blocking(reading, False)
    drain(lambda: os.read(reading, 1 << 20))
    sink.write(b"again\n")
    *_, told, last = os.read(reading, 1 << 20).splitlines()
    assert json.loads(told)["event"] == "log_lost" and json.loads(told)["lines"] > 100
    assert last == b"again"


def drain(read: Callable[[], bytes]) -> None:
    try:
        while read():
            pass
    except BlockingIOError:
        return
