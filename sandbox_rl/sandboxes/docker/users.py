"""A user of its own for every container: what the kernel counts per user, none takes from another."""

from __future__ import annotations

import secrets

__all__ = ["GROUP", "USERS", "ContainerUsers"]

USERS = range(20_000, 60_000)
"""Unused on ordinary systems, and within the 65,536 ids that engines in user namespaces have."""

GROUP = 1000
"""The group of all, as images have it."""


class ContainerUsers:
    """Hands out ids of users, from a random one on: two programs on one engine seldom share any."""

    def __init__(self) -> None:
        self._next = secrets.randbelow(len(USERS))
        self._taken: set[int] = set()

    def take(self) -> int:
        """One that no container of this backend has; `give_back` it when the container is gone.

        Raises:
            RuntimeError: all are taken.
        """
        for _ in USERS:
            user = USERS[self._next]
            self._next = (self._next + 1) % len(USERS)
            if user not in self._taken:
                self._taken.add(user)
                return user
        raise RuntimeError(f"all {len(USERS)} users of containers are taken")

    def give_back(self, user: int) -> None:
        """It may be taken again."""
        self._taken.discard(user)
