"""The GPU worker and its zygote: the only processes with torch."""
