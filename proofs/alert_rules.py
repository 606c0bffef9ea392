"""The alert rules are valid, each alert fires and stays silent when it should, and the tests of the rules can fail.

promtool checks Prometheus' configuration, the rules and the queries of all panels, and runs the unit tests in
tests/prometheus. Then all alerts are replaced by rules that never fire: every test of an alert that fires must fail.
With rules that always fire, every test of an alert that stays silent must fail. `BREAK=1` raises the threshold of
`LatencyHigh`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from proofs.kit import ROOT, Context, DataMissing, Result
from tools.check_rules import PROMETHEUS, TESTS, UnavailableError, build, check, queries

ALERTS = "alerts.yml"
_FAILED = re.compile(r"name: (\w+) (fires|stays silent)")


def run(context: Context) -> Result:
    """See the module."""
    try:
        promtool = build()
    except UnavailableError as error:
        raise DataMissing(f"promtool is not available: {error}") from None
    result = Result()
    rules, tests = _copy(context.folder)
    if context.broken:
        _change(rules / ALERTS, {"LatencyHigh": "job:stream_scorer_end_to_end_over_200ms:ratio_rate5m > 0.5"})
    for name, problem in check(promtool, rules, tests).items():
        if problem:
            context.say(problem)
        result.check(name, not problem)
    alerts = {rule["alert"]: rule for rule in _rules(rules / ALERTS)}
    result.at_least("alerts", len(alerts), 20)
    result.at_least("queries_of_dashboards", len(queries()), 50)
    for mutant, wanted in (("vector(0) > 1", "fires"), ("vector(1)", "stays silent")):
        _change(rules / ALERTS, dict.fromkeys(alerts, mutant), at_once=True)
        found = {alert for alert, kind in _failures(promtool, tests) if kind == wanted}
        result.figures[f"found_with_{mutant}"] = len(found)
        missed = ", ".join(sorted(alerts.keys() - found))
        result.check(f'with {mutant}, every test "{wanted}" fails{f" (not: {missed})" if missed else ""}', not missed)
    return result


def _copy(folder: Path) -> tuple[Path, Path]:
    """Copies of rules and tests, with the same path from the tests to the rules."""
    rules, tests = folder / PROMETHEUS.relative_to(ROOT), folder / TESTS.relative_to(ROOT)
    shutil.copytree(PROMETHEUS, rules)
    shutil.copytree(TESTS, tests)
    return rules, tests


def _rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def _change(path: Path, expressions: dict[str, str], *, at_once: bool = False) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for group in document["groups"]:
        for rule in group["rules"]:
            rule["expr"] = expressions.get(rule["alert"], rule["expr"])
            if at_once:
                rule.pop("for", None)
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


def _failures(promtool: Path, tests: Path) -> set[tuple[str, str]]:
    command = [str(promtool), "test", "rules", *map(str, sorted(tests.glob("*_test.yml")))]
    done = subprocess.run(command, capture_output=True, text=True)
    return set(_FAILED.findall(done.stdout + done.stderr))
