"""What a compromised broker or worker does. Each module is added to a test-only build of the daemon
(tests/support/builds.py), where it runs in the real process, below its lock_down(). A file next to the socket names the
attack. The next process takes that file and attacks. The one after it is honest, so that each attack is followed by a
right image."""
