"""What the broker counts, for status and for the supervisor's Prometheus file. Nothing in it is one client's own."""

from msgspec import Struct, field

from weave.protocol.errors import ErrorCode

# Upper bounds in seconds; one more bucket takes what is longer.
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram(Struct, forbid_unknown_fields=True):
    """How many values fell into each of BUCKETS and beyond, and their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[sum(seconds > bound for bound in BUCKETS)] += 1
        self.sum += seconds


class Metrics(Struct, forbid_unknown_fields=True):
    """Since the broker started. `errors` counts every error told to a client, by its code."""

    connections: int = 0
    connections_refused: int = 0
    clients_dropped: int = 0
    requests: int = 0
    errors: dict[ErrorCode, int] = {}
    images: int = 0
    models_loaded: int = 0
    workers_lost: int = 0
    queued_seconds: Histogram = field(default_factory=Histogram)
    loading_seconds: Histogram = field(default_factory=Histogram)
    generating_seconds: Histogram = field(default_factory=Histogram)
