"""``python -m proofs SLUG`` (or ``--list``): run a proof and print its verdict as the last line."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time

from proofs.kit import Context, Result, say, working_folder

# slug -> what it shows, in one line (the table of docs/proofs.md).
PROOFS = {
    "fresh-clone": "a fresh clone runs make demo and make test twice and leaves no process",
    "kill-once": "every input has one output whatever is killed; features count each event id once",
    "garbage": "bad input is dead-lettered with code and path, the rest is scored",
    "additive": "contributions add up to z, z gives the score, members equal their own libraries",
    "additivity": "every combiner: contributions equal Shapley values by enumeration and add up to z",
    "member-faults": "a member that fails, hangs or holds the lock costs its own part of scores and no more",
    "swap-under-load": "versions come and go under load: nothing lost, doubled or mixed; what each command took",
    "control-race": "people and a monitor command at once, scorers die and start: one history, one state",
    "incident": "a minor update of one member raises alerts: the monitor sees it, names it and rolls it back",
    "sticky": "an entity keeps its arm in every process and while the share grows",
    "hostile-artifacts": "whatever an ensemble's files hold: refused with a code, nothing executed, no process dies",
    "members-bench": "the scoring stage beside its members' bare predictions",
    "usage": "wrong usage gives one readable message and the exit code of the contract",
    "verify": "published scores equal a recomputation from their records; what is altered is found",
    "replay-thin": "a replay gives the scores and contributions that were served, and touches nothing live",
    "monitor-thin": "windows equal an offline recomputation; FPR bounds contain the hidden truth",
    "handbook-live": "quality on the Fraud Detection Handbook's transactions, by the live path",
    "features-oracle": "served features equal a brute-force recomputation on 21 days of the Handbook",
    "features-crash": "rows and features equal the log after 1,000 crashes in memory and 50 kill -9 on real parts",
    "features-flush": "lost features are noticed, and rebuilt beside live scoring",
    "features-batch": "the same feature bytes at 1, 7, 256 and 1,024 a batch",
    "features-property": "every aggregate equals a naive recomputation, whatever is odd about the events",
    "features-hotkey": "one terminal with a tenth of the traffic costs little more and errs within the bound",
    "features-retire": "rows that nobody will read again go, and no feature changes for it",
    "features-alignment": "a backlog drains side by side in event time, and terminals are not under-counted",
    "features-own-data": "two data sets of one's own run from CSV to scores",
    "features-bench": "what the feature path costs, by part, by length of rows and number of entities",
    "bench": "throughput and latency against the passthrough limit and a per-event loop",
}


def main(arguments: list[str]) -> int:
    """Run the proof named; 0 only if it holds."""
    if not arguments or arguments[0] not in PROOFS:
        for slug, title in PROOFS.items():
            print(f"{slug:15s} {title}")
        return 0 if arguments == ["--list"] else 2
    slug = arguments[0]
    module = importlib.import_module(f"proofs.{slug.replace('-', '_')}")
    number = os.environ.get("N") or None
    broken = os.environ.get("BREAK") not in (None, "", "0")
    # A broker that has just started makes librdkafka talk; what fails is raised.
    logging.getLogger("stream_scorer.kafka.librdkafka").setLevel(logging.CRITICAL)
    started = time.monotonic()
    result = Result()
    with working_folder(slug) as folder:
        context = Context(int(os.environ.get("SEED") or 1), int(number) if number else None, broken, folder, say)
        try:
            result = module.run(context)
        except AssertionError as error:
            say(f"failed: {error}")
            result.check("ran to its end", False)
    for name, holds in result.checks.items():
        say(f"{'ok  ' if holds else 'FAIL'} {name}")
    figures = result.figures | {"seed": context.seed, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({"proof": slug, "ok": result.ok, "broken": broken, "figures": figures}))
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
