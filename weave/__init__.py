"""weave-compute: a privilege-separated daemon that owns GPUs for diffusion models."""

__version__ = "0.1.0"
