"""Write the generated files docs/settings.md, docs/metrics.md and deploy/build.txt; `--check` compares them.

The documents come from the catalogues in the code, and the image's build requirements from requirements/dev.txt.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from stream_scorer.control.watch import WATCH_METRICS
from stream_scorer.incidents.signals import INCIDENT_METRICS
from stream_scorer.incidents.webhook import WEBHOOK_METRICS
from stream_scorer.monitor.metrics import MONITOR_METRICS
from stream_scorer.observability.metrics import PROCESS_METRICS, SCORER_METRICS, Metric
from stream_scorer.settings import CATALOGUE, Setting

ROOT = Path(__file__).resolve().parent.parent
_MADE = "<!-- Made by tools/make_reference.py from {}; do not edit. -->"

_SETTINGS = """\
# Settings

{made}

A setting has these sources, in this order; the first one that sets it wins:

1. the flag on the command line;
2. the environment variable;
3. the variable with the suffix `_FILE`: the path of a file that contains the value (for secrets; leading and
   trailing white space is removed);
4. `stream-scorer.toml` in the working directory: `kafka.bootstrap` is `bootstrap` in the section `[kafka]`;
   settings without a flag can be set by 2 to 4 only;
5. for `kafka.bootstrap`, `redis.url` and `mlflow.url`: a local stack that runs in this directory
   (`stream-scorer stack up`), if no source sets another address for one of the three. If one does, commands that need
   an address of the stack refuse;
6. the default.

A variable that is set but empty counts as set. An unknown name in the file is an error (exit code 2), and so is a value
that has the wrong type or is out of bounds; the message names the setting, the value, its source and what is allowed.
`stream-scorer doctor` prints every value with its source and bounds; in an address it hides user, password and query.

`[kafka.client]` in the file, and variables that begin with `STREAM_SCORER_KAFKA_CLIENT_`, set properties of librdkafka
for every Kafka client: see [security.md](security.md).

{table}

`scorer.watchdog_timeout_s` must be 0 or longer than `scorer.member_timeout_ms`.

Each command takes the flags of the settings it uses: `stream-scorer COMMAND --help`.
"""

_METRICS = """\
# Metrics

{made}

`/metrics` on `metrics.host`:`metrics.port` serves these metrics as Prometheus text. The same port serves `/healthz`
and `/readyz`. For a scorer, `/healthz` returns 503 with `problems` if the thread `scoring`, `control` or
`control-publisher` has stopped, or has made no progress for 240, 30 or 120 s. These limits exceed every wait for the
broker or Redis, so only a restart helps. `/readyz` returns 200 when the process has its partitions and, for a scorer,
scores with features and can read `control`; otherwise 503 with a reason that names everything that is missing. A scorer
without partitions, because others have them all, is ready. A monitor is ready when all its parts run; the field `parts`
has the state of each. No label contains data of a transaction. `deploy/prometheus` has alert rules to start from, and
`deploy/grafana` has dashboards.

No metric names its pipeline. If one Prometheus has several pipelines, these alerts take all of them together, so one of
them may hide another: `ScorersMissing`, `ScorersOwnNoPartition`, `PartitionsWithoutScorer`, `LatencyHigh`,
`ErrorRateHigh`, `DeadLettersRise`, `ScoresDegraded`, `ScoresWithoutFeatures`, `MemberErrorRateHigh`,
`VersionsNotCompared`, and `ScorerDown` and `MonitorDown` if a pipeline has no process at all. Then give the targets of
each pipeline a label, such as `pipeline`, and add it to the `by` and `on` clauses of `recording.yml` and `alerts.yml`.
The other alerts are per process, ensemble, topic or kind.

## Scorer (`stream-scorer run`)

{scorer}

## Monitor (`stream-scorer monitor`)

How to read the false-positive rate: the bounds contain the rate of that window whatever the missing labels are; the
interval shows what other cards of the same traffic could have given, so compare windows and versions by it.

{monitor}

## Process (scorer and monitor)

{process}
"""


def settings_document() -> str:
    """docs/settings.md."""
    rows = [
        (
            f"`{s.name}`",
            f"`{s.variable}`",
            f"`{s.flag}`" if s.flag else "",
            _default(s),
            s.kind,
            s.allowed or "any",
            s.help,
        )
        for s in CATALOGUE
    ]
    table = _table(("setting", "variable", "flag", "default", "type", "allowed", "meaning"), rows)
    return _SETTINGS.format(made=_MADE.format("stream_scorer/settings.py"), table=table)


def metrics_document() -> str:
    """docs/metrics.md."""
    made = _MADE.format("stream_scorer/observability/metrics.py and stream_scorer/monitor/metrics.py")
    return _METRICS.format(
        made=made,
        scorer=_metric_table(SCORER_METRICS),
        monitor=_metric_table(MONITOR_METRICS + WATCH_METRICS + INCIDENT_METRICS + WEBHOOK_METRICS),
        process=_metric_table(PROCESS_METRICS),
    )


def build_requirements() -> str:
    """deploy/build.txt: the pins and hashes of hatchling and its dependencies, from requirements/dev.txt."""
    text = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    blocks = {b.partition("==")[0]: b for b in re.split(r"\n(?=[A-Za-z0-9])", text) if "==" in b.partition("\n")[0]}
    # Below each pin, the lock lists the packages that require it, as "# via hatchling" or as a list after "# via".
    required_by = {name: set(re.findall(r"^ +#(?: +via)? +([\w.-]+)", block, re.M)) for name, block in blocks.items()}
    wanted = {"hatchling"}
    while more := {name for name, parents in required_by.items() if parents & wanted} - wanted:
        wanted |= more
    pins = [
        "\n".join(line for line in blocks[name].splitlines() if not line.lstrip().startswith("#"))
        for name in sorted(wanted)
    ]
    return "# Made by tools/make_reference.py from requirements/dev.txt; do not edit.\n" + "\n".join(pins) + "\n"


def _default(setting: Setting) -> str:
    if callable(setting.default):
        return setting.default_text
    return f"`{setting.default_text}`" if setting.default_text else "none"


def _metric_table(metrics: Iterable[Metric]) -> str:
    rows = []
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        buckets = f" Buckets: {', '.join(f'{b:g}' for b in metric.buckets)}." if metric.buckets else ""
        rows.append((f"`{metric.name}`", metric.kind, labels, metric.help + buckets))
    return _table(("metric", "kind", "labels", "meaning"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` print those that differ and return 3."""
    wanted = {
        ROOT / "docs" / "settings.md": settings_document(),
        ROOT / "docs" / "metrics.md": metrics_document(),
        ROOT / "deploy" / "build.txt": build_requirements(),
    }
    if "--check" not in arguments:
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        sys.stderr.write(f"{path.relative_to(ROOT)} differs from the code: run 'python tools/make_reference.py'\n")
    return 3 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
