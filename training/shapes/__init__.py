"""Trains the demo model: see README.md in models/shapes."""
