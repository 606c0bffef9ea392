"""``python -m proofs SLUG`` runs a proof and prints its verdict as the last line; ``--list`` lists them.

``--all [--only SLUGS] [--skip SLUGS]`` runs all of them (see `proofs/run_all.py`). docs/proofs.md describes the
environment variables SEED, N and BREAK.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time

from proofs.catalogue import PROOFS, module_of
from proofs.kit import Context, DataMissing, Result, say, working_folder
from proofs.run_all import run_all, select
from stream_scorer.errors import UsageError


def main(arguments: list[str]) -> int:
    """Run what `arguments` name; 0 only if it holds."""
    if arguments[:1] == ["--all"]:
        return _all(arguments[1:])
    if len(arguments) == 1 and arguments[0] in PROOFS:
        return _one(arguments[0])
    for slug, proof in PROOFS.items():
        print(f"{slug:20s} {proof.title}")
    return 0 if arguments == ["--list"] else 2


def _all(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m proofs --all")
    parser.add_argument("--only", default="", help="slugs to run, separated by commas")
    parser.add_argument("--skip", default="", help="slugs not to run, separated by commas")
    options = parser.parse_args(arguments)
    try:
        slugs = select(PROOFS, options.only, options.skip)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    # BREAK=1 is for one proof at a time: it must fail.
    environment = {name: value for name, value in os.environ.items() if name != "BREAK"}
    return run_all(slugs, environment, lambda text: print(text, flush=True))


def _one(slug: str) -> int:
    module = module_of(slug)
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
        except DataMissing as missing:
            say(f"skipped: {missing}")
            print(json.dumps({"proof": slug, "ok": False, "skipped": str(missing)}))
            return DataMissing.EXIT_CODE
    for name, holds in result.checks.items():
        say(f"{'ok  ' if holds else 'FAIL'} {name}")
    for name in result.unnoticed:
        say(f"UNNOTICED by {name!r}, although BREAK=1 breaks it")
    figures = result.figures | {"seed": context.seed, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({"proof": slug, "ok": result.ok, "broken": broken, "figures": figures}))
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
