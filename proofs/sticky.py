"""sticky: an entity keeps its arm: in every process, after every restart, and while the canary's share grows.

`N` entities are routed by the scorer's own router. Shares lie within their binomial interval; 1 % lies within 10 %
within 50 %; processes with other hash seeds say the same, to the last entity; another salt draws independently; and a
plain reading of RFC 7693's keyed BLAKE2b, entity by entity, agrees.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from math import sqrt

import numpy as np

from proofs.kit import ROOT, Context, Result
from stream_scorer.ensemble.lineup import Lineup, Split

N = 1_000_000
SHARES = (0.01, 0.1, 0.5)
SALT = "cards:8"
# Six checks of shares with a chance of 1e-6 each to fail by bad luck.
_SIGMAS = 4.9
_OTHERS = 3


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    result = Result()
    broken = context.broken
    arms = {share: route(n, context.seed, share, SALT, broken=broken) for share in SHARES}
    shares = {}
    for share, arm in arms.items():
        shares[f"{share:.0%}"] = round(float(arm.mean()), 6)
        result.check(f"{share:.0%} is within its interval", _within(arm.mean(), share, n))
    result.figures |= {"entities": n, "shares": shares}
    result.check("1 % lies within 10 %", not (arms[0.01] & ~arms[0.1]).any())
    result.check("10 % lies within 50 %", not (arms[0.1] & ~arms[0.5]).any())
    other = route(n, context.seed, 0.1, "cards:9", broken=broken)
    result.check("another salt gives another draw", _within((arms[0.1] & other).mean(), 0.01, n))
    digests = {digest(arms[0.1])} | {_elsewhere(n, context.seed, hash_seed, broken) for hash_seed in range(_OTHERS)}
    result.figures["processes"] = 1 + _OTHERS
    result.check("every process routes every entity alike", len(digests) == 1)
    plain = np.array([_plainly(name, 0.1) for name in entities(n, context.seed)])
    result.check("a plain reading of the definition agrees", np.array_equal(plain, arms[0.1]))
    return result


def entities(n: int, seed: int) -> list[str]:
    """Names of entities, of several shapes."""
    return [f"customer-{seed}-{i}" if i % 2 else f"{i:08d}" for i in range(n)]


def route(n: int, seed: int, share: float, salt: str, *, broken: bool) -> np.ndarray:
    """(n,) bool: in the canary."""
    if broken:
        return np.array([hash((salt, name)) % 1_000_000 < share * 1_000_000 for name in entities(n, seed)])
    lineup = Lineup((), Split(share, salt))
    return lineup.route(entities(n, seed), np.zeros(n, np.int64)) == 1


def digest(arm: np.ndarray) -> str:
    """Of who is in the canary."""
    return hashlib.sha256(np.packbits(arm).tobytes()).hexdigest()


def _within(found: float, share: float, n: int) -> bool:
    return abs(found - share) <= _SIGMAS * sqrt(share * (1 - share) / n)


def _elsewhere(n: int, seed: int, hash_seed: int, broken: bool) -> str:
    code = f"from proofs.sticky import *; print(digest(route({n}, {seed}, 0.1, SALT, broken={broken})))"
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.strip()


def _plainly(name: str, share: float) -> bool:
    key = hashlib.blake2b(SALT.encode(), digest_size=32).digest()
    return int(hashlib.blake2b(name.encode(), digest_size=8, key=key).hexdigest(), 16) < share * 2.0**64
