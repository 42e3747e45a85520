"""What one principal may use, and all together. Not per connection: a client could open many."""

import asyncio
from typing import Literal, Protocol

from msgspec import Struct

from weave.broker.admission.principal import UNKNOWN, Principal
from weave.config.child_configs import BrokerConfig
from weave.protocol.errors import ErrorCode, RequestError

# The last slots of a total are for known principals that have none of them: one in this many.
_RESERVED = 4


class TokenBucket:
    """`burst` tokens at first and at most; `rate` new ones a second."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled = now

    def take(self, now: float, *, leave: int = 0) -> float:
        """Take a token, if `leave` remain: 0.0, or the seconds until that is possible."""
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1 + leave:
            return (1 + leave - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class Unread(Struct):
    """How much of it there is; images count with the memfd that holds them. What the kernel has taken to hand over
    counts no more: some 200 KB, or 280 descriptors, a connection (unix(7), net.core.wmem_default)."""

    bytes: int = 0
    images: int = 0

    def add(self, other: "Unread", sign: int) -> None:
        """Count `other` in (1) or out (-1)."""
        self.bytes += sign * other.bytes
        self.images += sign * other.images


class Counted(Protocol):
    """A connection, as far as limits go."""

    @property
    def share(self) -> "Share":
        """Its principal's."""

    @property
    def unread(self) -> Unread:
        """What its client has yet to read."""

    def drop(self, reason: str) -> None:
        """End it; what is unread is lost, and counts no more."""


class Share:
    """What one principal uses. Lives as long as it has a connection."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.connections: set[Counted] = set()
        self.unread = Unread()
        # Held while a request is handled: principals take turns, however many connections each has.
        self.turn = asyncio.Lock()


class Admission:
    """Counts connections, jobs, requests and output of each principal. Times are the event loop's, in seconds."""

    def __init__(self, config: BrokerConfig) -> None:
        self._shares: dict[Principal, Share] = {}
        # One for each principal ever seen: no more than there are known UIDs.
        self._buckets: dict[Principal, TokenBucket] = {}
        self._delivered: dict[Principal, int] = {}
        self.reconfigure(config)

    def reconfigure(self, config: BrokerConfig) -> None:
        """From now on. All rates start again with their burst."""
        self.limits = config.limits
        self._others = config.mode == "system"
        self._deliver_fds = config.deliver_fds
        self._buckets.clear()

    def enter(self, principal: Principal) -> Share:
        """For a new connection, which is to be added to the share. Raises RequestError (rate_limited)."""
        share = self._shares.get(principal) or Share(principal)
        self._check_room("connections", principal, self.connections(), len(share.connections))
        self._shares[principal] = share
        return share

    def leave(self, connection: Counted) -> None:
        """The connection is gone."""
        share = connection.share
        share.connections.remove(connection)
        if not share.connections:
            del self._shares[share.principal]

    def connections(self) -> int:
        """All that are open."""
        return sum(len(share.connections) for share in self._shares.values())

    def check_queue(self, principal: Principal, *, waiting: int, theirs: int) -> None:
        """Whether one more job may wait where `waiting` do, `theirs` of this principal. Raises RequestError
        (queue_full)."""
        self._check_room("queue", principal, waiting, theirs)

    def request(self, principal: Principal, now: float) -> None:
        """Raises RequestError (rate_limited) with the seconds to wait."""
        limits = self.limits
        fresh = TokenBucket(limits.requests_per_second, limits.burst_per_uid, now)
        wait = self._buckets.setdefault(principal, fresh).take(now)
        if wait:
            raise RequestError(
                ErrorCode.RATE_LIMITED, f"too many requests; try again in {wait:.2f} s", retry_after=wait
            )

    def may_deliver(self, principal: Principal, size: int) -> bool:
        """Whether `size` bytes may go as a descriptor, which then counts. The client can hold on to that memory after
        everything else is gone, and the daemon cannot see when it lets go: so the count never goes down."""
        delivered = self._delivered.get(principal, 0) + size
        if not self._deliver_fds or delivered > self.limits.delivered_bytes:
            return False
        self._delivered[principal] = delivered
        return True

    def check_unread(self, share: Share) -> None:
        """After a write. Where it is too much, drop the connection that has left the most: the others live on."""
        limits = self.limits
        for unit, own, total in (
            ("bytes", limits.outgoing_bytes, limits.outgoing_bytes_total),
            ("images", limits.outgoing_images, limits.outgoing_images_total),
        ):
            while _unread(share, unit) > own:
                _drop_worst(share, unit, f"its user's connections have more than {own} {unit} together")
            while sum(_unread(each, unit) for each in self._shares.values()) > total:
                most = max(self._shares.values(), key=lambda each: _unread(each, unit))
                _drop_worst(most, unit, f"all clients have more than {total} {unit} together, and its user the most")

    def _check_room(self, what: Literal["connections", "queue"], principal: Principal, total: int, theirs: int) -> None:
        limit, own = getattr(self.limits, what), getattr(self.limits, f"{what}_per_uid")
        reserved = limit // _RESERVED if self._others and (theirs or principal == UNKNOWN) else 0
        if theirs >= own:
            field, maximum, note = f"{what}_per_uid", own, ""
            if principal == UNKNOWN:
                note = ", which all users share whose names the daemon does not know"
        elif total >= limit - reserved:
            field, maximum, note = what, limit, f", of which {reserved} are kept for others" if reserved else ""
        else:
            return
        code, full = _FULL[what]
        raise RequestError(code, f"{full} ({field} is {maximum}{note})", field=field, maximum=maximum)


_FULL = {
    "connections": (ErrorCode.RATE_LIMITED, "too many connections"),
    "queue": (ErrorCode.QUEUE_FULL, "the queue is full"),
}


def _unread(share: Share, unit: str) -> int:
    count: int = getattr(share.unread, unit)
    return count


def _drop_worst(share: Share, unit: str, reason: str) -> None:
    worst = max(share.connections, key=lambda connection: getattr(connection.unread, unit))
    worst.drop(f"left too much unread: {reason}")
