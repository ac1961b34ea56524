"""A policy that vLLM servers sample: one that is started here, or several given by address."""
