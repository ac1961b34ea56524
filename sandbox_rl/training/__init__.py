"""From rollouts to a trained model. The only package that touches TRL, pinned by `tests/smoke`."""
