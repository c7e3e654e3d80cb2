"""The peers, each in an environment of its own where it needs one."""
