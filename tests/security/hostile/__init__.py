"""What a broker or worker does once it was taken over. Each module is put into a test-only build of the daemon
(tests/support/builds.py), where it runs in the real process, below its lock_down().

A file beside the socket names the attack. Whoever starts while it is there takes it away, and attacks; the next
broker or worker is honest, so that each attack is followed by a right picture.
"""
