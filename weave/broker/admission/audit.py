"""The audit of what clients were refused. A client that is refused often must not fill the disk, nor crowd out what
others are refused: beyond a few lines refusals are counted, and the counts are written, so that nothing is lost
silently."""

import asyncio
from collections import Counter
from typing import Any

from msgspec import Struct, field

from weave import log
from weave.broker.admission.limits import TokenBucket
from weave.broker.admission.principal import Principal, principal_of
from weave.config.child_configs import Access
from weave.protocol.peer import Peer

# Of one event and principal in each window.
LINES = 20
_WINDOW_SECONDS = 10.0
_LONGEST_TEXT = 200
_MOST_UIDS = 10_000
_PROMPTS = "generate"
_NOBODY = Access(uids=())


class _Suppressed(Struct):
    """Lines of one event that were not written."""

    lines: int = 0
    uids: set[int] = field(default_factory=set)


class _Budget:
    """The lines of one kind. `burst` and ten times `rate` is what comes in ten seconds at most; the supervisor takes
    500 lines and 1 MiB of all that we write (`stderr_relay.py`). The second half of the burst is for each
    principal's first line in a window: no few can use it up."""

    def __init__(self, *, rate: float, burst: int, longest_text: int) -> None:
        self._bucket = TokenBucket(rate, burst, asyncio.get_running_loop().time())
        self._half = burst // 2
        self._longest_text = longest_text
        self._written: Counter[tuple[str, Principal]] = Counter()
        self._suppressed: dict[str, _Suppressed] = {}
        self._end: asyncio.TimerHandle | None = None

    def write(self, event: str, peer: Peer, principal: Principal, fields: dict[str, Any]) -> None:
        """A line, or one more to be counted."""
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
        """Write the counts; the next line opens a new window."""
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
    """Three budgets, so that none of them can use up another's: strangers, prompts, and everything else."""

    def __init__(self, access: Access = _NOBODY) -> None:
        """Whom `access` does not know counts as one with the others."""
        self._access = access
        self._strangers = _Budget(rate=4.0, burst=40, longest_text=_LONGEST_TEXT)
        self._prompts = _Budget(rate=4.0, burst=40, longest_text=65536)
        self._rest = _Budget(rate=10.0, burst=60, longest_text=_LONGEST_TEXT)

    def reconfigure(self, access: Access) -> None:
        """From now on."""
        self._access = access

    def write(self, event: str, peer: Peer, **fields: Any) -> None:
        """Of a client that may connect."""
        budget = self._prompts if event == _PROMPTS else self._rest
        budget.write(event, peer, principal_of(self._access, peer.uid), fields)

    def stranger(self, peer: Peer) -> None:
        """Someone who may not connect tried to."""
        fields = {"reason": "neither this UID nor a group of it is allowed"}
        self._strangers.write("connection_refused", peer, principal_of(self._access, peer.uid), fields)

    def close(self) -> None:
        """Write all counts now: the daemon stops."""
        for budget in (self._strangers, self._prompts, self._rest):
            budget.close()
