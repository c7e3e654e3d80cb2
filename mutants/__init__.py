"""Planted faults: what the tests are for. ``python -m mutants`` plants them one at a time."""
