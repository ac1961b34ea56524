"""Faults injected into runs and their parts: what a run of days must survive.

What takes long has the mark `faults`: the whole suite leaves it out, and `scripts/test --faults` runs it.
"""
