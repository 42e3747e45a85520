"""The report of tests/gpu has the result of each test, including failed ones, even if the visit ends early."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os, pytest
from pathlib import Path

def test_it_passes(figures):
    figures["seconds"] = 3.1

def test_it_fails(figures):
    figures["seconds"] = 4.1
    assert 1 == 2, f"in {os.getcwd()} of {os.uname().nodename}"

def test_it_needs_a_card(card):
    pass

@pytest.mark.seconds(9000)
def test_it_takes_too_long():
    pass

def test_it_ends_the_visit(pytestconfig):
    os._exit(3)

def test_it_never_runs():
    pass
"""


def test_the_report_is_written_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "test_d_example.py").write_text(TESTS)
    options = ("-p", "tests.gpu.conftest", "--without-gpu", f"--report-folder={tmp_path}", "--seconds=600")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path / "test_d_example.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode == 3, ended.stdout + ended.stderr
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert [(step["letter"], step["name"], step["outcome"]) for step in report["steps"]] == [
        ("d", "it passes", "passed"),
        ("d", "it fails", "failed"),
        ("d", "it needs a card", "skipped"),
        ("d", "it takes too long", "skipped"),
        ("d", "it ends the visit", "not run"),
        ("d", "it never runs", "not run"),
    ]
    steps = {step["name"]: step for step in report["steps"]}
    assert steps["it passes"]["figures"] == {"seconds": 3.1} and steps["it fails"]["figures"] == {"seconds": 4.1}
    assert "assert 1 == 2" in steps["it fails"]["reason"]
    assert "rehearsal" in steps["it needs a card"]["reason"]
    assert "no time left" in steps["it takes too long"]["reason"]
    assert steps["it ends the visit"]["reason"] == "it began, and did not end"
    page = (tmp_path / "report.txt").read_text()
    assert "1 passed, 1 failed, 2 skipped, 2 not run" in page and "seconds: 4.1" in page
    assert str(ROOT) not in page and socket.gethostname() not in page
