"""`python -m sandbox_rl COMMAND …`: `sandbox-rl`, for `accelerate launch -m` and `torchrun -m`."""

from __future__ import annotations

from sandbox_rl.cli import main

if __name__ == "__main__":
    main()
