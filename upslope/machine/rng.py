"""Randomness as a pure function of (seed, stream, index): order-independent, resume-proof, the same on any rank."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(seed: int, stream: str, *index: int | str) -> int:
    """A 63-bit seed from (seed, stream, index), for generators other than numpy's."""
    return _key(seed, stream, index)[0] >> 1


def rng(seed: int, stream: str, *index: int | str) -> np.random.Generator:
    """A counter-based generator (Philox) keyed by (seed, stream, index) alone: never by rank, time or fingerprint."""
    return np.random.Generator(np.random.Philox(key=np.array(_key(seed, stream, index), dtype=np.uint64)))


def _key(seed: int, stream: str, index: tuple[int | str, ...]) -> tuple[int, int]:
    text = "\x1f".join([str(int(seed)), stream, *(f"{type(i).__name__[0]}{i}" for i in index)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
