"""c: record mode: what the driver asks of the kernel after lock-down, and whether the lists have it."""

from typing import Any

import pytest

from tests.gpu.product import Recording
from tests.support import recorded


@pytest.mark.seconds(60)
def test_record_mode_finds_nothing_that_is_not_listed(recording: Recording, figures: dict[str, Any]) -> None:
    figures["summary"] = recording.summary or "(nothing)"
    figures["failures"] = recording.failures
    assert not recording.failures
    assert not [line for line in recording.summary.splitlines() if line.startswith("not listed")]
    assert not recorded.to_add(recording.summary)
