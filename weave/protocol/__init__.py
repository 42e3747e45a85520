"""What two processes, or a process and a client, say to each other: the only types they share."""

from pathlib import Path

# Where the system's daemon and its clients meet; a user's own is below $XDG_RUNTIME_DIR.
SYSTEM_SOCKET_PATH = Path("/run/weave/weave.sock")
