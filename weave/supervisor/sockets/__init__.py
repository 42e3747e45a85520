"""The socket that clients reach the daemon through: one that we bind, one that systemd hands us, or a connection to the
program that started us."""
