"""Figures, not assertions: the machines are noisy."""
