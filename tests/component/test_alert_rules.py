"""Prometheus' own checks of rules, their unit tests and the queries of dashboards, where promtool was built."""

from __future__ import annotations

import pytest

from tools.check_rules import binary, check


def test_rules_and_queries_pass_promtool() -> None:
    promtool = binary()
    if not promtool.exists():
        pytest.skip("promtool is not built: `make promtool` builds it from its Go module, which takes minutes")
    assert {name: problem for name, problem in check(promtool).items() if problem} == {}
