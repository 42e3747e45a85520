"""What one UID may use. Per UID and not per connection: a client could open many."""

from collections import Counter

from weave.config.schema import Limits
from weave.protocol.errors import ErrorCode, RequestError


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
    """Counts connections and requests of each UID. Times are the event loop's, in seconds."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._connections: Counter[int] = Counter()
        self._buckets: dict[int, TokenBucket] = {}

    def connect(self, uid: int) -> None:
        """Raises RequestError (rate_limited) where there are too many connections already."""
        for name, count, limit in (
            ("connections", self._connections.total(), self.limits.connections),
            ("connections_per_uid", self._connections[uid], self.limits.connections_per_uid),
        ):
            if count >= limit:
                raise RequestError(
                    ErrorCode.RATE_LIMITED, f"too many connections ({name} is {limit})", field=name, maximum=limit
                )
        self._connections[uid] += 1

    def disconnect(self, uid: int) -> None:
        """The connection that connect() admitted is gone."""
        self._connections[uid] -= 1

    def connections(self) -> int:
        """All that are open."""
        return self._connections.total()

    def request(self, uid: int, now: float) -> None:
        """Raises RequestError (rate_limited) with the seconds to wait."""
        limits = self.limits
        fresh = TokenBucket(limits.requests_per_second, limits.burst_per_uid, now)
        wait = self._buckets.setdefault(uid, fresh).take(now)
        if wait:
            raise RequestError(
                ErrorCode.RATE_LIMITED, f"too many requests; try again in {wait:.2f} s", retry_after=wait
            )
