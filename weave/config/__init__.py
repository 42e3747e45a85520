"""The config file: TOML, checked once, then frozen structs. Each child gets only the part that it needs.

Nothing is imported here, so that a child can import child_configs.py without the rest.
"""
