"""What this daemon can do beyond the base of version 2, by the names in `status` (docs/protocol.md, "Features")."""

from weave.protocol.parameters import PARAMETERS

_OTHERS = {"cancel-by-job": "0.1.0", "memory-plans": "0.2.0", "tokens": "0.1.0"}
# Each with the version of weave-compute that had it first. A name is never reused for something else.
FEATURES = dict(sorted((_OTHERS | {p.feature: p.since for p in PARAMETERS.values() if p.feature}).items()))


def features(*, deliver_fds: bool) -> tuple[str, ...]:
    """The features of a daemon with this configuration."""
    return tuple(name for name in FEATURES if deliver_fds or name != "fd-delivery")
