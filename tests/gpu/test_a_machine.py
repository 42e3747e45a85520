"""a: what the machine is."""

from typing import Any

import pytest

from tests.gpu import machine
from tests.gpu.report import Report


@pytest.mark.seconds(40)
def test_the_machine_has_what_the_daemon_needs(report: Report, figures: dict[str, Any]) -> None:
    report.machine = machine.facts()
    if machine.why_no_card() is None:
        lazy = machine.card("LAZY")
        figures["with kernels loaded when used"] = {name: lazy.get(name) for name in machine.START}
    lacks = machine.missing(report.machine, rehearsal=report.rehearsal)
    figures["missing"] = ", ".join(lacks) or "nothing"
    assert not lacks
