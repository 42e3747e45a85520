"""What one UID may use. Per UID and not per connection: a client could open many."""

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from weave.broker.outgoing import Unread
from weave.config.schema import Limits
from weave.protocol.errors import ErrorCode, RequestError

if TYPE_CHECKING:
    from weave.broker.connection import Connection


class TokenBucket:
    """`burst` tokens at first and at most; `rate` new ones a second."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled = now

    def take(self, now: float) -> float:
        """Take a token: 0.0, or the seconds until there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class Admission:
    """Counts connections, requests and unread output of each UID. Times are the event loop's, in seconds."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._connections: defaultdict[int, set[Connection]] = defaultdict(set)
        self._unread: defaultdict[int, Unread] = defaultdict(Unread)
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._buckets: dict[int, TokenBucket] = {}

    def reconfigure(self, limits: Limits) -> None:
        """From now on; whoever had used up its rate begins anew."""
        self.limits = limits
        self._buckets.clear()

    def connect(self, connection: "Connection") -> None:
        """Raises RequestError (rate_limited) where there are too many connections already."""
        theirs = self._connections[connection.peer.uid]
        for name, count, limit in (
            ("connections", self.connections(), self.limits.connections),
            ("connections_per_uid", len(theirs), self.limits.connections_per_uid),
        ):
            if theirs and count >= limit:
                raise RequestError(
                    ErrorCode.RATE_LIMITED, f"too many connections ({name} is {limit})", field=name, maximum=limit
                )
        theirs.add(connection)

    def disconnect(self, connection: "Connection") -> None:
        """The connection that connect() admitted is gone."""
        self._connections[connection.peer.uid].remove(connection)

    def connections(self) -> int:
        """All that are open."""
        return sum(map(len, self._connections.values()))

    def turn(self, uid: int) -> asyncio.Lock:
        """Held while a request is handled: users take turns, however many connections each has."""
        return self._turns[uid]

    def unread(self, uid: int) -> Unread:
        """What all connections of this UID have left unread."""
        return self._unread[uid]

    def check_unread(self, uid: int) -> None:
        """Where it is too much, drop the connection that has left the most: the UID's others live on."""
        for unit, limit in (("bytes", self.limits.outgoing_bytes), ("images", self.limits.outgoing_images)):
            if getattr(self._unread[uid], unit) <= limit:
                continue
            for worst in sorted(self._connections[uid], key=lambda one: -getattr(one.outgoing.unread, unit)):
                worst.drop(f"left too much unread: its user's connections have more than {limit} {unit} together")
                if getattr(self._unread[uid], unit) <= limit:
                    break

    def request(self, uid: int, now: float) -> None:
        """Raises RequestError (rate_limited) with the seconds to wait."""
        limits = self.limits
        fresh = TokenBucket(limits.requests_per_second, limits.burst_per_uid, now)
        wait = self._buckets.setdefault(uid, fresh).take(now)
        if wait:
            raise RequestError(
                ErrorCode.RATE_LIMITED, f"too many requests; try again in {wait:.2f} s", retry_after=wait
            )
