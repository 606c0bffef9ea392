"""The report as one self-contained HTML page: no script, nothing fetched, every text escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path

from stream_scorer import __version__
from stream_scorer.errors import SettingsError
from stream_scorer.reports import plots
from stream_scorer.reports.explain import Explained
from stream_scorer.reports.facts import Facts
from stream_scorer.reports.latency import PERCENTILES, percentiles
from stream_scorer.reports.quality import ENSEMBLE, Quality
from stream_scorer.reports.story import Story
from stream_scorer.reports.windows import alert_rates, long_ms

HOUR_MS = 3_600_000


def write_page(story: Story, facts: Facts, path: Path) -> Path:
    """Write the page to `path` and return it. Raises `SettingsError` if it cannot be written."""
    text = page(story, facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from None
    return path


def page(story: Story, facts: Facts) -> str:
    """The whole page. Raises `SettingsError` if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SettingsError("plots need matplotlib", hint="Install stream-scorer[report].") from None
    css = files("stream_scorer.reports").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(
        section(story, facts)
        for section in (_head, _tiles, _incident, _checks, _flow, _latency, _quality, _alerts, _windows, _steps)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may be loaded from anywhere, whatever stands in the page.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(story.title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _head(story: Story, _facts: Facts) -> str:
    failed = sum(not check.holds for check in story.checks)
    verdict = f'<span class="bad">{failed} checks failed</span>' if failed else '<span class="good">passed</span>'
    sent = story.sent
    return (
        f"<h1>{escape(story.title)}: {verdict}</h1>"
        f'<p class="soft">A real Kafka, Redis and MLflow, five trained members, scorer and monitor as processes of '
        f"their own, on simulated card transactions. {sent['transactions']:,} live transactions with "
        f"{sent['duplicates']:,} second copies and {sent['garbage']:,} bad records at {story.rate:,.0f} a second; "
        f"{story.total_s:.0f} s on {escape(story.machine)}; version {escape(__version__)}.</p>"
    )


def _tiles(_story: Story, facts: Facts) -> str:
    delivery = facts.delivery
    arrived = percentiles(facts.latency.arrived)
    whole = facts.qualities[0]
    alerts = whole.alerts
    inside, ripe = facts.truth_inside
    tiles = [
        (f"{delivery.inputs:,} = {delivery.scored:,} + {delivery.dead:,}", "records in = scored + dead letters"),
        (f"{_ms(arrived[50.0])} / {_ms(arrived[99.0])}", "p50 / p99 until a committed reader has the score"),
        (
            f"{_percent(alerts.precision)} / {_percent(alerts.recall)}",
            "precision / recall of alerts, hidden truth",
        ),
        (f"{_figure_or_dash(whole.average_precision)}", "average precision of the ensemble"),
        (f"{inside} of {ripe}", "ripe windows whose bounds hold the true false-positive rate"),
    ]
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        + ("</div>")
    )


def _incident(_story: Story, facts: Facts) -> str:
    incident = facts.incident
    if incident is None or incident.promoted is None:
        return ""
    update, every, genuine = incident.update, incident.everyone, incident.genuine
    steps = [["0.0", f"<b>promote</b> version {escape(update.version)}, by {escape(incident.promoted.command.who)}",
              escape(incident.promoted.command.why)]]  # fmt: skip
    if incident.back is not None and incident.took_s is not None:
        command = incident.back.command
        steps.append([f"{incident.took_s:.1f}", f"<b>{escape(command.action)}</b>, by {escape(command.who)} "
                      f"({escape(command.author)})", escape(command.why)])  # fmt: skip
    if incident.took_s is not None and incident.last_s is not None:
        steps.append([f"{incident.took_s + incident.last_s:.1f}", "its last score reaches a reader", ""])
    rows = [
        [name, f"{square.rows:,}", f"{square.served:,}", f"{square.other:,}", square.more]
        for name, square in (("all", every), ("genuine (hidden truth): false positives", genuine))
    ]
    return (
        _section(
            "The incident",
            f"A version with a minor update was promoted: {escape(update.told)}. On the history that raises alerts by "
            f"{update.rise:.0%}. The monitor is told nothing of it. It sees what the version before would have decided "
            "on the same transactions, which the scorer publishes while a version is on probation.",
        )
        + _table(["!second", "on the log of commands", "reason given"], steps)
        + '<div class="grid">'
        + _figure(
            plots.paired_alerts(incident),
            "Alerts since the promotion, added up. Both versions scored each of these transactions, so traffic and "
            "time of day are the same for both.",
        )
        + _figure(
            plots.evidence(incident),
            "Evidence against a rise of at most 5 %, which may be looked at as often as one likes: without such a rise "
            "it ever reaches the dashed line with a probability of at most 0.001.",
        )
        + "</div>"
        + _table(["transactions", "!scored by both", "!alerts", "!the version before", "!more"], rows)
    )


def _checks(story: Story, _facts: Facts) -> str:
    rows = [
        [
            '<span class="good">ok</span>' if check.holds else '<span class="bad">failed</span>',
            escape(check.name),
            escape(check.found),
        ]
        for check in story.checks
    ]
    return _section("What had to hold") + _table(["", "check", "found"], rows)


def _flow(story: Story, facts: Facts) -> str:
    codes = Counter(story.recording.dead.code)
    rows = [[f"<code>{escape(code)}</code>", f"{count:,}"] for code, count in codes.most_common()]
    return (
        _section(
            "In against out",
            f"Every record on <code>transactions</code> must have exactly one score with its contributions, or one "
            f"dead letter, as a read_committed consumer outside of the scorer sees them: "
            f"{escape(facts.delivery.verdict)}.",
        )
        + '<div class="grid">'
        + _figure(
            plots.flow(story),
            "Top: records sent and scores that became visible, each second; bottom: how many were inside at a time. "
            "Not shown: the history, which was on the topic before and only warmed the features.",
        )
        + f"<figure>{_table(['error code', '!dead letters'], rows)}<figcaption>What the bad records were refused "
        "for; each keeps its original bytes on the dead-letter topic.</figcaption></figure></div>"
    )


def _latency(_story: Story, facts: Facts) -> str:
    rows = []
    for name, values in (
        ("until scored (<code>scored_at</code>)", facts.latency.scored),
        ("until a committed reader has it", facts.latency.arrived),
    ):
        found = percentiles(values)
        worst = float(values.max()) if len(values) else float("nan")
        rows.append([name, *(_ms(found[p]) for p in PERCENTILES), _ms(worst)])
    return (
        _section(
            "Latency",
            "From the record's Kafka timestamp, set when the sender handed it over; broker, scorer, monitor, sender "
            "and this watcher share the machine.",
        )
        + _table(["", *(f"!p{p:g}" for p in PERCENTILES), "!max"], rows)
        + '<div class="grid">'
        + _figure(
            plots.latency_curve(facts.latency),
            "Share of transactions slower than a latency, both axes logarithmic. The gap between the curves is the "
            "Kafka commit and the way to the reader, whose clock is read every 5 ms.",
        )
        + _figure(
            plots.latency_over_time(facts.latency),
            "p50 and p99 of every two seconds. What else ran on the machine is not shown; the first seconds hold "
            "what a fresh process does once.",
        )
        + "</div>"
    )


def _quality(story: Story, facts: Facts) -> str:
    weights = {m["name"]: m["weight"] for m in story.training.get("members", [])}
    sets = {m["name"]: m["feature_set"] for m in story.training.get("members", [])}

    def row(q: Quality) -> list[str]:
        return [
            escape(q.name), escape(sets.get(q.name, "")),
            _number(weights.get(q.name, 1.0 if q.name == ENSEMBLE else None)),
            _figure_or_dash(q.average_precision), _figure_or_dash(q.roc_auc),
            _percent(q.alerts.precision), _percent(q.alerts.recall),
            f"{q.alerts.caught:,} of {q.alerts.alerts:,}",
        ]  # fmt: skip

    rows = [row(q) for q in facts.qualities]
    frauds = facts.qualities[0].alerts.frauds
    return (
        _section(
            "Precision and recall",
            f"Against the hidden truth, which no part of the product reads: {frauds:,} frauds among "
            f"{len(facts.events.row):,} transactions, second copies left out. Alerts are decisions review or block, "
            f"at scores from {story.review:.3f}; a member's figures are what its own calibrated score would do there.",
        )
        + _table(
            ["", "features", "!weight", "!AP", "!AUC", "!precision", "!recall", "!fraud among alerts"], rows, sums=1
        )
        + '<div class="grid">'
        + _figure(
            plots.precision_recall_curves(story, facts.events, facts.qualities),
            "The ensemble against each member alone; dots stand where the review threshold lies. Fraud is rare, so "
            "precision moves by single transactions at the left edge.",
        )
        + _figure(
            plots.recall_bars(facts.kinds),
            "Which kinds of fraud were alerted. Transactions count, not cards: an episode whose second payment is "
            "alerted shows here as half found.",
        )
        + "</div>"
    )


def _alerts(_story: Story, facts: Facts) -> str:
    figures = "".join(_explained(alert, number) for number, alert in enumerate(facts.explained, start=1))
    text = (
        "The true alerts that their members raised furthest, each of another kind of fraud. Base and contributions "
        "add up to z, in log-odds; the final calibrator makes the score of it."
    )
    if not figures:
        text = "There was no true alert to explain."
    return _section("Three alerts explained", text) + f'<div class="grid three">{figures}</div>'


def _explained(alert: Explained, number: int) -> str:
    rows = [["base", "", "", f"{alert.base:+.3f}"]]
    rows += [
        [escape(part.name), _number(part.score), _number(part.weight), f"{part.contribution:+.3f}"]
        for part in alert.parts
    ]
    rows.append(["z", "", "", f"{alert.z:+.3f}"])
    moment = datetime.fromtimestamp(alert.event_time / 1_000, UTC)
    return _figure(
        f"<p><b>{escape(alert.kind.replace('_', ' '))}</b>, {alert.value / 100:,.2f}, {moment:%d %b %Y %H:%M}: "
        f"{escape(alert.decision)} at score <b>{alert.score:.3f}</b><br><code>{escape(alert.event_id)}</code></p>"
        + plots.waterfall(alert, number)
        + _table(["member", "!score", "!weight", "!log-odds"], rows, sums=-1),
        f"Red raised the log-odds, green lowered them; the sum misses z by {alert.residual:.0e}.",
    )


def _windows(story: Story, facts: Facts) -> str:
    length = long_ms(story)
    inside, ripe = facts.truth_inside
    hours = length // HOUR_MS
    labels = ", ".join(f"{count:,} by {source.replace('_', ' ')}" for source, count in sorted(story.labels.items()))
    return (
        _section(
            "The monitor's windows",
            f"{facts.windows:,} event-time windows from the summaries and the labels, which arrive late and only "
            f"for some: {escape(labels) or 'none'}.",
        )
        + '<div class="grid">'
        + _figure(
            plots.alert_rate(alert_rates(story, story.pane_ms), alert_rates(story, length)),
            f"Share of transactions alerted, by pane and by {hours} h; panes of fewer than {plots.MIN_PANE_ROWS} "
            "transactions are left out. The last window is cut off by the end of the traffic.",
        )
        + _figure(
            plots.false_positives(facts.bounds),
            f"Bounds of the false-positive rate by {hours} h: silent alerts may be either. Diamonds are the truth, "
            f"which the monitor does not know; it lies inside in {inside} of {ripe} windows with ripe labels.",
        )
        + _figure(
            plots.drift(facts.drifts),
            f"Jensen-Shannon distance from the training profile by {hours} h: the score, and the features and members "
            "that differ most; an alarm is not raised here. Nothing was broken in this traffic: counts over 30 days "
            "differ because the profile was made from a shorter history. Columns of the calendar are left out, since "
            "no single day is like the whole profile.",
            wide=True,
        )
        + "</div>"
    )


def _steps(story: Story, _facts: Facts) -> str:
    return _section("Where the time went", f"{story.total_s:.1f} s up to this report.") + _figure(
        plots.steps_bar(story.steps),
        "Wall time by step. Training begins when publishing does. Not shown: installing, and making this page.",
    )


def _section(title: str, text: str = "") -> str:
    return f"<h2>{escape(title)}</h2>" + (f"<p>{text}</p>" if text else "")


def _figure(content: str, caption: str, *, wide: bool = False) -> str:
    opening = '<figure class="wide">' if wide else "<figure>"
    return f"{opening}{content}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, sums: int = 0) -> str:
    """Cells are markup. A heading with ``!`` before it is of a column of numbers; `sums` marks a first or last row."""
    numeric = [heading.startswith("!") for heading in headings]
    head = "".join(_cell("th", escape(h.removeprefix("!")), n) for h, n in zip(headings, numeric, strict=True))
    cells = ["".join(_cell("td", cell, n) for cell, n in zip(row, numeric, strict=True)) for row in rows]
    strong = {1: 0, -1: len(cells) - 1}.get(sums)
    marked = ['<tr class="sum">' if place == strong else "<tr>" for place in range(len(cells))]
    body = "".join(f"{mark}{row}</tr>" for mark, row in zip(marked, cells, strict=True))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(kind: str, content: str, numeric: bool) -> str:
    opening = f'<{kind} class="n">' if numeric else f"<{kind}>"
    return f"{opening}{content}</{kind}>"


def _ms(value: float) -> str:
    return "-" if value != value else f"{value:,.0f} ms"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else "-" if value != value else f"{value:.3f}"


def _figure_or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
