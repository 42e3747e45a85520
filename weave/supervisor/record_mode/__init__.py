"""Record mode: what the worker of a new driver needs of the kernel, in the form in which the lists take it."""
