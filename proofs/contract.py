"""In-memory parts and real ones pass the same suites, and the suites find a fault in each in-memory part.

The suites are those of `tests/contract`. `N=1` runs them in memory only and lists the cases on real parts.
`BREAK=1` injects no fault, so there is none to find.
"""

from __future__ import annotations

from proofs.kit import Context, Result
from tests.support.faults import FAULTS, PARTS, run_suites, run_with

SUITES = ("test_reader.py", "test_transactions.py", "test_rows.py", "test_counters.py")


def run(context: Context) -> Result:
    """Both sides once, then each fault."""
    result = Result()
    listing = context.n == 1
    memory = run_suites(*SUITES, real=False)
    context.say(f"in memory: {len(memory.passed)} of {len(memory.collected)} cases pass")
    real = run_suites(*SUITES, real=True, collect_only=listing)
    passed = real.collected if listing else real.passed
    context.say(f"on real parts: {len(passed)} of {len(real.collected)} cases {'are listed' if listing else 'pass'}")
    for outcome in (memory, *([] if listing else [real])):
        for case in sorted(outcome.failed):
            context.say(f"failed: {case}")
    result.figures |= {"cases_in_memory": len(memory.passed), "cases_on_real_parts": len(passed)}
    result.at_least("cases_on_both", len(memory.passed & passed), 60)
    result.check("every case passes in memory", not memory.failed)
    result.check("every case passes on real parts", passed == real.collected)
    result.check("both sides have the same cases", memory.collected == real.collected)
    found = 0
    for fault in FAULTS:
        outcome = run_suites(fault.suite, real=False) if context.broken else run_with(fault)
        context.say(f"{fault.part.__name__}: {fault.title}: {_by_which(outcome.first_failed)}")
        found += bool(outcome.first_failed)
        result.check(f"found: {fault.title}", bool(outcome.first_failed))
    result.figures |= {"faults": len(FAULTS), "faults_found": found, "parts": sorted(p.__name__ for p in PARTS)}
    return result


def _by_which(case: str) -> str:
    return f"found by {case}" if case else "NOT FOUND"
