"""Whether every sample of a run is accounted for: `sandbox-rl check`."""

from sandbox_rl.runs.check.page import CheckedRun, check_run

__all__ = ["CheckedRun", "check_run"]
