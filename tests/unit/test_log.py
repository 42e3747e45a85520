"""A line of the log is short enough for one write to a pipe, and printable."""

import json
import select
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weave import log

values = st.recursive(
    st.one_of(st.text(max_size=5000), st.integers(-(2**63), 2**64 - 1)),
    lambda inner: st.one_of(st.lists(inner, max_size=50), st.dictionaries(st.text(max_size=50), inner, max_size=20)),
)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=200), st.dictionaries(st.text(max_size=100), values, max_size=10))
def test_any_line_fits_a_pipe(event: str, fields: dict[str, Any]) -> None:
    line = log._line("broker", event, fields)
    assert len(line) <= select.PIPE_BUF and line.count(b"\n") == 1
    assert json.loads(line)["process"] == "broker"


def test_log_lines_have_only_printable_characters(capfd: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[31m\x7f\x9b1m\u202e\u2028\n é"
    log.write("broker", "job_failed", detail=hostile, layers=[hostile], long=hostile * 500)
    log.write("broker", "job_failed", detail=hostile)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.isprintable() for line in lines)
    assert json.loads(lines[1])["detail"] == hostile


def test_a_cut_line_says_so_and_keeps_its_beginning() -> None:
    line = json.loads(log._line("broker", "event", {"many": ["\N{EURO SIGN}" * 50] * 50}))
    assert line["cut"].startswith('{"many":["') and line["event"] == "event"
