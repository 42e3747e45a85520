"""The supervisor: it reads the config, binds the socket, and starts, attests, watches and restarts the other
processes. It never reads a byte from a client and never imports torch."""
