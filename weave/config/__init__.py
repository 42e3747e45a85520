"""The config file: TOML, checked once, then frozen structs. Each child gets only its own part of it.

Nothing is imported here: a child that imports its part (parts.py) would get to know the rest.
"""
