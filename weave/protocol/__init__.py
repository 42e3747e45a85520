"""What two processes, or a process and a client, say to each other: the only types they share."""
