"""Checks that run beside training and say, within a step or two, when what looks like a run is none."""
