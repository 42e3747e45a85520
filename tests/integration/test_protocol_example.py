"""The examples in docs/protocol.md, sent to the real daemon byte by byte."""

import json
import re
import struct
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon
from tests.support.wire import receive_frame
from weave.protocol.frames import Kind

PAGE = Path(__file__).parents[2] / "docs/protocol.md"
FRAMES = re.findall(r"^    (client|daemon)  ([0-9a-f ]+)  (.+)$", PAGE.read_text(), re.MULTILINE)
# Values that differ between machines or runs.
VARIES = ("job", "size", "timings")


def steady(payload: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(payload).items() if name not in VARIES}


def test_the_protocol_examples_match_the_daemon(shared_daemon: Daemon) -> None:
    assert [who for who, _, _ in FRAMES].count("client") == 6 and len(FRAMES) == 23
    with shared_daemon.client() as client:
        client.unload()
    with shared_daemon.connect() as connection:
        for who, numbers, text in FRAMES:
            header = bytes.fromhex(numbers)
            magic, version, kind, length, request = struct.unpack(">4sHHII", header)
            assert (magic, version) == (b"WEVE", 2)
            assert length == (len(text) if kind == Kind.CONTROL else int(text.strip("( bytes)")))
            if who == "client":
                connection.sendall(header + (text.encode() if kind == Kind.CONTROL else bytes(length)))
                continue
            heard, payload = receive_frame(connection)
            assert (heard.version, heard.kind, heard.request) == (version, kind, request)
            if kind == Kind.CONTROL:
                assert steady(payload) == steady(text.encode())
            else:
                assert payload.startswith(b"\x89PNG")
