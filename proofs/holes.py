"""Each defect that the audit found has a test, which passes, and which fails if the fix is taken away.

Prints one line per test. `N=1` leaves out the tests that need a Kafka or a Redis. `BREAK=1` runs every test without
its fix.
"""

from __future__ import annotations

from collections.abc import Sequence

from proofs.kit import Context, Result
from proofs.reverted_fixes import HOLES, Hole, Outcome, run_tests

NUMBERS = range(1, 14)


def run(context: Context) -> Result:
    """All tests once, then each without its fix."""
    result = Result()
    holes = [hole for hole in HOLES if context.n != 1 or not hole.needs_services]
    found = run_tests(holes, reverting=context.broken)
    reverted = found if context.broken else run_tests(holes, reverting=True)
    for line in table(holes, found, reverted):
        context.say(line)
    for hole in holes:
        ours, without = found.result(hole), reverted.result(hole)
        result.check(f"{hole.number}: passes: {hole.defect}", ours == "passed")
        result.check(f"{hole.number}: fails without its fix: {hole.defect}", without == "failed")
    if not result.ok and not context.broken:
        context.say(found.output)
    result.check("every number has a test", {hole.number for hole in holes} == set(NUMBERS) or context.n == 1)
    result.figures |= {"numbers": len({hole.number for hole in holes})}
    result.at_least("tests", len(holes), 25)
    return result


def table(holes: Sequence[Hole], found: Outcome, reverted: Outcome) -> list[str]:
    """A line per test: number, result, result without the fix, defect, test, and its failure without the fix."""
    rows = [("no.", "result", "without fix", "defect", "test, failure without fix")]
    for hole in holes:
        more = f"{hole.test}  {reverted.reasons.get(hole.test, '')[:100]}"
        rows.append((str(hole.number), found.result(hole), reverted.result(hole), hole.defect, more))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
