"""The supervisor: it reads the config, binds the socket, and starts, attests, watches and restarts the other
processes. It never reads a client's byte and never imports torch."""
