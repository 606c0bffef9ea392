"""The gate on a range with records that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_scorer.cli.gate import show_report
from stream_scorer.clock import SystemClock
from stream_scorer.gate.inputs import from_files
from stream_scorer.gate.run import run_gate
from stream_scorer.replay.pieces import Range
from stream_scorer.spec import parse_spec
from stream_scorer.spec.gate_rules import parse_rules
from tests.support.small_history import SPEC_TEXT, small_ensemble, write_history

DRIFT = "version: 1\ncost: {max_ratio: 2}\nskew: {max_share: 0.5}\ndrift: {max_distance: 1, min_rows: 100}\n"
PAIRED = """quality: [{metric: alert_rate, max_loss: 1, min_rows: 100}, {metric: recall, max_loss: 1, min_rows: 100}]
fairness: [{segment: channel, max_ratio: 1000, max_ratio_to_champion: 1000, min_rows: 100}]
"""


def test_rules_are_not_measured_on_a_range_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = parse_spec(SPEC_TEXT)
    champion = small_ensemble(tmp_path, checked, "1", {"one": 1, "two": 2})
    small_ensemble(tmp_path, checked, "2", {"one": 1, "two": 4})
    transactions, labels = write_history(tmp_path)

    def report(rules: str, start: int) -> Any:
        material = from_files(transactions, labels, checked, Range(time_start=start), None)
        return run_gate(parse_rules(rules), checked, (tmp_path / "2", "2"), champion, material, SystemClock())

    def verdicts(found: Any) -> dict[str, str]:
        return {rule.rule: rule.verdict for rule in found.rules}

    few = report(DRIFT + PAIRED, 1_500)
    assert verdicts(few) == {rule.rule: "pass" for rule in few.rules} | {"skew": "refuse"}  # nothing was recorded
    assert 0 < few.rejected < 0.05 * few.transactions
    show_report(few, as_json=False)
    shown = (
        f"{few.transactions:,} transactions (68% with mature labels), {few.rejected:,} records that cannot be read, "
    )
    assert shown in capsys.readouterr().out

    # The first ones are before the range.
    rows = pq.read_table(transactions).to_pylist()
    for place in [*range(200), *range(400, len(rows), 3)]:
        rows[place]["amount"] = 5_000
    pq.write_table(pa.Table.from_pylist(rows), transactions)
    for rules in (DRIFT + PAIRED, DRIFT):
        many = report(rules, 1_500)
        n = many.rejected
        assert 250 < n < 350 and many.transactions > 500
        assert {rule.rule for rule in many.rules if rule.verdict == "pass"} == {"self_test", "cost.ratio"}
        (reason,) = {rule.reason for rule in many.rules if rule.verdict == "refuse"}
        assert reason.startswith(f"not measured: {n:,} of ")
        assert "records of the range cannot be read, at most 5% may be: correct them, or the spec" in reason
