"""Status notifications to systemd: sd_notify(3), without its library."""

import os
import socket
import time


class Notifier:
    """Does nothing if the daemon was not started with NOTIFY_SOCKET."""

    def __init__(self) -> None:
        """Removes NOTIFY_SOCKET and WATCHDOG_* from the environment, so that no child inherits them."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        for_us = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Interval for calling alive(): half of the watchdog's timeout.
        self.alive_seconds = int(microseconds) / 2e6 if microseconds.isdecimal() and for_us else None

    def ready(self, status: str) -> None:
        """Clients are served. Also ends reloading()."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A new config is being read."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """New clients are no longer served."""
        self._send("STOPPING=1")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        """Reset the watchdog's timer."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
                datagram.setblocking(False)
                datagram.sendto("\n".join(lines).encode(), self._address)
        except OSError:  # a service manager that does not listen must not stop the daemon
            return
