"""Prometheus' own checks of rules, their unit tests and the queries of dashboards, if promtool is built."""

from __future__ import annotations

import os

import pytest

from tools.check_rules import binary, check


def test_rules_and_queries_pass_promtool() -> None:
    promtool = binary()
    if not promtool.exists():
        assert not os.environ.get("PROMTOOL_BUILT"), f"the workflow builds promtool, but not as {promtool}"
        pytest.skip("promtool is not built: `make promtool` builds it from its Go module, which takes minutes")
    assert {name: problem for name, problem in check(promtool).items() if problem} == {}
