"""The proofs, scaled down: the same programs on the same real parts, with less of everything.

Some proofs have no form here, because other tests cover what they show: `incident` (the demo's second act and
`tests/integration/test_watch.py` on real services, `tests/unit/test_probation.py`) and `soak` (half a minute shows no
slope; `tests/unit/test_soak_proof.py` covers its judgement).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest

from proofs.catalogue import PROOFS
from proofs.kit import Context

SIZES = {
    "kill-once": 6_000,
    "garbage": 6_000,
    "leaks": 400,
    "additive": 4_000,
    "usage": 1,
    "lineage": 2_000,
    "features-flush": 4,
    "refusal": 300,
    "features-batch": 500,
    "features-own-data": 4_000,
    "features-retire": 20_000,
    "swap-under-load": 1_500,
    "control-race": 45,
    "sticky": 50_000,
}

# They kill scorers or measure under load, so at full size they start services of their own.
SHARE_WHEN_SMALL = ("kill-once", "features-flush", "swap-under-load", "control-race")


@pytest.mark.integration
@pytest.mark.timeout(300)
@pytest.mark.parametrize("slug", SIZES)
def test_the_proof_holds_at_a_small_scale(
    slug: str, context: Callable[..., Context], request: pytest.FixtureRequest
) -> None:
    if PROOFS[slug].shares or slug in SHARE_WHEN_SMALL:
        request.getfixturevalue("shared_services")
    result = importlib.import_module(f"proofs.{slug.replace('-', '_')}").run(context(SIZES[slug]))
    assert result.checks and result.failed(but_costs=True) == []


@pytest.mark.integration
def test_a_hot_key_stays_bounded_and_errs_within_its_bound(context: Callable[..., Context]) -> None:
    result = importlib.import_module("proofs.features_hotkey").run(context(30_000))
    assert result.failed(but_costs=True) == []


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_the_monitor_counts_everything_in_flat_memory(context: Callable[..., Context]) -> None:
    result = importlib.import_module("proofs.monitor_bench").run(context(80_000))
    assert result.failed(but_costs=True) == []


@pytest.mark.integration
@pytest.mark.timeout(400)
def test_a_short_storm_violates_nothing(context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORM_SECONDS", "30")
    monkeypatch.setenv("STORM_SHRINK_RUNS", "0")
    # A seed with actions of every group in its 30 seconds.
    result = importlib.import_module("proofs.storm").run(context(1, seed=59))
    assert result.ok, result.failed()
