"""The audit counts what it leaves out, so that one user's refusals do not hide another's."""

import asyncio

import pytest

from weave import log
from weave.broker.admission.audit import LINES, Audit
from weave.config.child_configs import Access
from weave.protocol.peer import Peer


def test_known_users_leave_log_lines_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[tuple[str, int]] = []
    monkeypatch.setattr(log, "write", lambda _, event, peer=None, **fields: lines.append((event, fields.get("lines"))))

    async def main() -> None:
        audit = Audit(Access(uids=(0,), known=frozenset(range(1000))))
        for uid in range(3):
            for _ in range(50):
                audit.write("request_refused", Peer(1, uid, uid), reason="")
        noisy = len(lines)
        assert LINES <= noisy <= 31
        # A fourth user's first line, and a stranger's.
        audit.write("request_refused", Peer(1, 3, 3), reason="")
        audit.stranger(Peer(1, 4, 4))
        assert [event for event, _ in lines[noisy:]] == ["request_refused", "connection_refused"]
        # 120 known users with every event: no more lines than the limits allow.
        before = len(lines)
        for _ in range(LINES):
            for uid in range(120):
                for event in ("request_refused", "frame_refused", "client_dropped", "job_timed_out", "generate"):
                    audit.write(event, Peer(1, uid, uid), reason="")
        assert len(lines) - before <= 100
        audit.stranger(Peer(1, 5, 5))
        assert lines[-1][0] == "connection_refused"
        audit.close()
        told = sum(count for event, count in lines if event == "suppressed")
        assert told + sum(event != "suppressed" for event, _ in lines) == 150 + 3 + LINES * 120 * 5

    asyncio.run(main())
