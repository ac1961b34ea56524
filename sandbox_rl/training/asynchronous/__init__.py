"""Updates that go on while episodes are rolled out by a process of their own."""
