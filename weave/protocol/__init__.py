"""The messages between our processes, and between the daemon and its clients: the only types they share."""

from pathlib import Path

# The system daemon's. A user's daemon has its own below $XDG_RUNTIME_DIR.
SYSTEM_SOCKET_PATH = Path("/run/weave/weave.sock")
