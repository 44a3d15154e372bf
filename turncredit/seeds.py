"""Every random draw comes from the run's seed, by a path of names: no generator has a position to be saved."""

from __future__ import annotations

import hashlib


def seed_of(*path: int | str) -> int:
    """A 63-bit seed for a path such as (run seed, "tasks", step): independent streams, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
