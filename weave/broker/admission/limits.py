"""The limits of each principal, and of all together. They are not per connection, since a client can open many."""

import asyncio
from typing import Literal, Protocol

from msgspec import Struct

from weave.broker.admission.principal import UNKNOWN, Principal
from weave.config.child_configs import BrokerConfig
from weave.protocol.errors import ErrorCode, RequestError

# One in this many slots of a total is reserved for known principals that have none.
_RESERVED = 4


class TokenBucket:
    """Starts with `burst` tokens, its maximum; gains `rate` a second."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled = now

    def take(self, now: float, *, leave: int = 0) -> float:
        """Take a token if at least `leave` remain, and return 0.0; else return the seconds until that is possible."""
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1 + leave:
            return (1 + leave - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class Unread(Struct):
    """Output that has not been sent; images count with their memfd. What is in the socket's buffer does not count:
    about 200 KB, or 280 descriptors, for each connection (unix(7), net.core.wmem_default)."""

    bytes: int = 0
    images: int = 0

    def add(self, other: "Unread", sign: int) -> None:
        """Add (`sign` 1) or subtract (-1) `other`."""
        self.bytes += sign * other.bytes
        self.images += sign * other.images


class Incoming(Struct):
    """Images that clients have announced, from their request until its job is over."""

    bytes: int = 0
    images: int = 0


class Counted(Protocol):
    """What the limits need of a connection."""

    @property
    def share(self) -> "Share":
        """The share of its principal."""

    @property
    def unread(self) -> Unread:
        """What its client has not read yet."""

    def drop(self, reason: str) -> None:
        """End the connection; what is unread is lost, and no longer counts."""


class Share:
    """What one principal uses, while it has a connection."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.connections: set[Counted] = set()
        self.unread = Unread()
        # Held while a request is handled, so that principals take turns, however many connections each has.
        self.turn = asyncio.Lock()


class Admission:
    """Counts connections, jobs, requests and output of each principal. Times are the event loop's, in seconds."""

    def __init__(self, config: BrokerConfig) -> None:
        self._shares: dict[Principal, Share] = {}
        # One for each principal seen: at most one more than there are known UIDs.
        self._buckets: dict[Principal, TokenBucket] = {}
        self._delivered: dict[Principal, int] = {}
        self._incoming: dict[Principal, Incoming] = {}
        self.reconfigure(config)

    def reconfigure(self, config: BrokerConfig) -> None:
        """Takes effect immediately. All token buckets start full."""
        self.limits = config.limits
        self._others = config.mode == "system"
        self._deliver_fds = config.deliver_fds
        self._buckets.clear()

    def enter(self, principal: Principal) -> Share:
        """The share for a new connection, which must then be added to it. Raises RequestError (rate_limited)."""
        share = self._shares.get(principal) or Share(principal)
        self._check_room("connections", principal, self.connections(), len(share.connections))
        self._shares[principal] = share
        return share

    def leave(self, connection: Counted) -> None:
        """Remove a connection that has ended."""
        share = connection.share
        share.connections.remove(connection)
        if not share.connections:
            del self._shares[share.principal]

    def connections(self) -> int:
        """The number of open connections."""
        return sum(len(share.connections) for share in self._shares.values())

    def check_queue(self, principal: Principal, *, waiting: int, theirs: int) -> None:
        """Check that one more job may be queued. `waiting` jobs are queued now, `theirs` of this principal. Raises
        RequestError (queue_full)."""
        self._check_room("queue", principal, waiting, theirs)

    def request(self, principal: Principal, now: float) -> None:
        """Count a request. Raises RequestError (rate_limited) with the seconds to wait."""
        limits = self.limits
        fresh = TokenBucket(limits.requests_per_second, limits.burst_per_uid, now)
        wait = self._buckets.setdefault(principal, fresh).take(now)
        if wait:
            raise RequestError(
                ErrorCode.RATE_LIMITED, f"too many requests; try again in {wait:.2f} s", retry_after=wait
            )

    def may_deliver(self, principal: Principal, size: int) -> bool:
        """Whether `size` bytes may be sent as a descriptor. If so, they count from now on. The client can keep that
        memory even after it has disconnected, and the daemon cannot see when it frees it: so the count never goes
        down."""
        delivered = self._delivered.get(principal, 0) + size
        if not self._deliver_fds or delivered > self.limits.delivered_bytes:
            return False
        self._delivered[principal] = delivered
        return True

    def reserve(self, principal: Principal, announced: Incoming) -> None:
        """Count images before their first byte is read. Raises RequestError (queue_full; out_of_bounds if they could
        never fit)."""
        held = self._incoming.get(principal, Incoming())
        self._check_incoming("bytes", principal, announced.bytes, held.bytes)
        self._check_incoming("images", principal, announced.images, held.images)
        self._incoming[principal] = Incoming(held.bytes + announced.bytes, held.images + announced.images)

    def release(self, principal: Principal, announced: Incoming) -> None:
        """Stop counting these images."""
        held = self._incoming.pop(principal, Incoming())
        left = Incoming(held.bytes - announced.bytes, held.images - announced.images)
        if left.images > 0:
            self._incoming[principal] = left

    def check_unread(self, share: Share) -> None:
        """Called after each write. Above a limit, drops the connection with the most unread output; the others
        continue."""
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

    def _check_incoming(self, unit: Literal["bytes", "images"], principal: Principal, more: int, theirs: int) -> None:
        own, total = getattr(self.limits, f"incoming_{unit}"), getattr(self.limits, f"incoming_{unit}_total")
        everyone = sum(getattr(held, unit) for held in self._incoming.values())
        reserved = total // _RESERVED if self._others and (theirs or principal == UNKNOWN) else 0
        name, code = f"incoming_{unit}", ErrorCode.QUEUE_FULL
        if more > min(own, total):
            code, field, limit = ErrorCode.OUT_OF_BOUNDS, name if own <= total else f"{name}_total", min(own, total)
            note = ""
        elif theirs + more > own:
            field, limit, note = name, own, f", of which {theirs} are in use"
        elif everyone + more > total - reserved:  # the error does not say how much others use
            field, limit, note = (
                f"{name}_total",
                total,
                f", of which {reserved} are kept for others" if reserved else "",
            )
        else:
            return
        images = "bytes of images" if unit == "bytes" else "images"
        raise RequestError(
            code, f"no room for {more} {images} ({field} is {limit}{note})", field=field, value=more, maximum=limit
        )

    def _check_room(self, what: Literal["connections", "queue"], principal: Principal, total: int, theirs: int) -> None:
        limit, own = getattr(self.limits, what), getattr(self.limits, f"{what}_per_uid")
        reserved = limit // _RESERVED if self._others and (theirs or principal == UNKNOWN) else 0
        if theirs >= own:
            field, maximum, note = f"{what}_per_uid", own, ""
            if principal == UNKNOWN:
                note = ", shared by all users that the daemon does not know by name"
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
