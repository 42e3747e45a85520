"""The audit log of refusals. A client that is refused often must neither fill the disk nor crowd out the lines of
others. So after a few lines refusals are only counted, and the counts are logged: nothing is lost silently."""

import asyncio
from collections import Counter
from typing import Any

from msgspec import Struct, field

from weave import log
from weave.broker.admission.limits import TokenBucket
from weave.broker.admission.principal import Principal, principal_of
from weave.config.child_configs import Access
from weave.protocol.peer import Peer

# For each event and principal, in each window.
LINES = 20
_WINDOW_SECONDS = 10.0
_LONGEST_TEXT = 200
_MOST_UIDS = 10_000
_PROMPTS = "generate"
_NOBODY = Access(uids=())


class _Suppressed(Struct):
    """Lines of one event that were counted and not written."""

    lines: int = 0
    uids: set[int] = field(default_factory=set)


class _Budget:
    """The budget for one kind of line. At most `burst` plus ten times `rate` lines are written in ten seconds; the
    supervisor accepts 500 lines and 1 MiB from the broker (supervisor/children/stderr_relay.py). The second half of the
    burst is reserved for each principal's first line in a window, so that a few principals cannot use it up."""

    def __init__(self, *, rate: float, burst: int, longest_text: int) -> None:
        self._bucket = TokenBucket(rate, burst, asyncio.get_running_loop().time())
        self._half = burst // 2
        self._longest_text = longest_text
        self._written: Counter[tuple[str, Principal]] = Counter()
        self._suppressed: dict[str, _Suppressed] = {}
        self._end: asyncio.TimerHandle | None = None

    def write(self, event: str, peer: Peer, principal: Principal, fields: dict[str, Any]) -> None:
        """Write a line, or count it."""
        loop = asyncio.get_running_loop()
        if self._end is None:
            self._end = loop.call_later(_WINDOW_SECONDS, self.close)
        written = self._written[event, principal]
        if written < LINES and not self._bucket.take(loop.time(), leave=self._half if written else 0):
            self._written[event, principal] += 1
            log.write("broker", event, peer=peer, **{name: self._cut(value) for name, value in fields.items()})
            return
        suppressed = self._suppressed.setdefault(event, _Suppressed())
        suppressed.lines += 1
        if len(suppressed.uids) < _MOST_UIDS:
            suppressed.uids.add(peer.uid)

    def close(self) -> None:
        """Write the counts. The next line starts a new window."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        for event, suppressed in self._suppressed.items():
            whose = {"uid": next(iter(suppressed.uids))} if len(suppressed.uids) == 1 else {}
            log.write("broker", "suppressed", of=event, lines=suppressed.lines, uids=len(suppressed.uids), **whose)
        self._written.clear()
        self._suppressed.clear()

    def _cut(self, value: Any) -> Any:
        return value[: self._longest_text] if isinstance(value, str) else value


class Audit:
    """Separate budgets for strangers, prompts and everything else, so that none can use up another's."""

    def __init__(self, access: Access = _NOBODY) -> None:
        """All users that `access` does not know count as one principal."""
        self._access = access
        self._strangers = _Budget(rate=4.0, burst=40, longest_text=_LONGEST_TEXT)
        self._prompts = _Budget(rate=4.0, burst=40, longest_text=65536)
        self._rest = _Budget(rate=10.0, burst=60, longest_text=_LONGEST_TEXT)

    def reconfigure(self, access: Access) -> None:
        """Takes effect from the next line on."""
        self._access = access

    def write(self, event: str, peer: Peer, **fields: Any) -> None:
        """For a client that may connect."""
        budget = self._prompts if event == _PROMPTS else self._rest
        budget.write(event, peer, principal_of(self._access, peer.uid), fields)

    def stranger(self, peer: Peer) -> None:
        """For a peer that may not connect."""
        fields = {"reason": "neither this UID nor any of its groups is allowed"}
        self._strangers.write("connection_refused", peer, principal_of(self._access, peer.uid), fields)

    def close(self) -> None:
        """Write all counts, before the daemon stops."""
        for budget in (self._strangers, self._prompts, self._rest):
            budget.close()
