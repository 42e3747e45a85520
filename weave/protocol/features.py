"""What this daemon can do beyond the base of version 2, by the names in `status` (docs/protocol.md, "Features")."""

# Each with the version of weave-compute that had it first. A name is never taken away from what it stands for.
FEATURES = {
    "cancel-by-job": "0.1.0",
    "fd-delivery": "0.1.0",
    "previews": "0.1.0",
    "raw": "0.1.0",
    "tokens": "0.1.0",
}
TEXT_TO_IMAGE = "text-to-image"


def features(*, deliver_fds: bool) -> tuple[str, ...]:
    """Those of a daemon that is configured so."""
    return tuple(name for name in FEATURES if deliver_fds or name != "fd-delivery")
