"""What the broker counts, for status and for the supervisor's Prometheus file. Nothing in it belongs to one client.

Clients skip fields and error codes that they do not know: a newer daemon may have more.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from weave.protocol.text import Name

# Upper bounds in seconds; one more bucket counts everything above.
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Histogram(Struct):
    """How many values fell into each of BUCKETS and beyond, and their sum in seconds."""

    counts: Annotated[list[Count], Meta(min_length=len(BUCKETS) + 1, max_length=len(BUCKETS) + 1)] = field(
        default_factory=lambda: [0] * (len(BUCKETS) + 1)
    )
    sum: Annotated[float, Meta(ge=0)] = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[sum(seconds > bound for bound in BUCKETS)] += 1
        self.sum += seconds


class Metrics(Struct):
    """Counters since the broker started. `errors` counts the errors sent to clients, by code."""

    connections: Count = 0
    connections_refused: Count = 0
    clients_dropped: Count = 0
    requests: Count = 0
    errors: dict[Name, Count] = {}
    images: Count = 0
    models_loaded: Count = 0
    workers_lost: Count = 0
    queued_seconds: Histogram = field(default_factory=Histogram)
    loading_seconds: Histogram = field(default_factory=Histogram)
    generating_seconds: Histogram = field(default_factory=Histogram)

    def copy(self) -> "Metrics":
        """A snapshot that later counting does not change."""
        return _decoder.decode(_encoder.encode(self))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Metrics)
