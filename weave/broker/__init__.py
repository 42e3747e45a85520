"""The broker: the only process that reads a client's bytes. It has no files, no GPU and no right to get any."""
