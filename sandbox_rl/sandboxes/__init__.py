"""Where the policy's commands run. `base` holds the Protocols that the rest of the code knows."""
