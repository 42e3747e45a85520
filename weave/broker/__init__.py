"""The broker: the only process that reads clients' bytes. It has no access to files or to the GPU."""
