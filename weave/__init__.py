"""weave-compute: a privilege-separated daemon that owns one GPU for diffusion models."""

__version__ = "0.1.0"
