"""Sandboxes that are containers of a Docker engine (also Podman's and gVisor's), here or on another host."""
