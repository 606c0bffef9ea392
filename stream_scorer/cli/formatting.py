"""One readable line per record, for each topic. Pure functions on text, without clock, terminal or Kafka."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from stream_scorer.cli.topic_io import USER_TOPICS, ReadRecord, Redaction, text_header
from stream_scorer.console import plain
from stream_scorer.records import (
    MISSING,
    NOT_A_RECORD,
    PARTIAL,
    STALE,
    TOPIC_RECORDS,
    Alert,
    AuditRecord,
    Command,
    Contribution,
    Finding,
    Incident,
    MonitorMetric,
    Outcome,
    Record,
    Score,
    ScorerStatus,
    ScoreSummary,
    ServingState,
    VerdictRecord,
)
from stream_scorer.serde.lineage import LineageBatch

# The topic whose values are not JSON.
LINEAGE = "lineage"
# Number of members that a line names; --json contains all.
_STRONGEST = 3


def when(ms: int) -> str:
    """UTC time of epoch milliseconds; the number itself if it is outside the calendar."""
    try:
        return f"{datetime.fromtimestamp(ms // 1_000, UTC):%Y-%m-%d %H:%M:%S}.{ms % 1_000:03d}"
    except (ValueError, OverflowError, OSError):
        return str(ms)


def percent(share: float) -> str:
    """A share as people read it, such as `0.5 %`."""
    return f"{100 * share:.4g} %"


def line(topic: str, record: ReadRecord, redaction: Redaction) -> str:
    """`record` of the topic `topic` (without prefix) as one line: its content, or the reason why it is unreadable."""
    if topic not in TOPIC_RECORDS and topic != LINEAGE:
        return _user_line(topic, record, redaction)
    try:
        if topic == LINEAGE:
            return plain(_lineage(LineageBatch(record.value or b""), record.timestamp_ms))
        decoded = msgspec.json.decode(record.value or b"", type=TOPIC_RECORDS[topic])
    except NOT_A_RECORD as error:
        why = plain(str(error).partition(" - at ")[0])
        return f"{when(record.timestamp_ms)}  {_place(record)}  not a record of {topic}: {why}"
    return plain(_LINES[type(decoded)](decoded, record.timestamp_ms))


def json_line(topic: str, record: ReadRecord, redaction: Redaction) -> str:
    """`record` as one line of JSON: the value of our own topics, and the redacted value of the user's topics.

    Control characters are escaped, which does not change the document.
    """
    # Tabs and carriage returns can only stand between the parts of a document.
    return plain(_document(topic, record, redaction).replace("\t", " ").replace("\r", " "))


def _document(topic: str, record: ReadRecord, redaction: Redaction) -> str:
    if topic in TOPIC_RECORDS and record.value is not None and b"\n" not in record.value:
        return record.value.decode("utf-8", "backslashreplace")
    if topic == LINEAGE:
        try:
            return msgspec.json.encode(LineageBatch(record.value or b"").document()).decode()
        except msgspec.DecodeError:
            pass  # shown below as bytes
    about: dict[str, Any] = {
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp_ms,
        "key": redaction.key(record.key),
    }
    if topic == "transactions.dlq":
        about |= {
            name: text_header(record.headers, name)
            for name in ("error.code", "error.path", "error.message", "source.topic", "source.partition",
                         "source.offset", "source.timestamp", "value.length", "value.sha256")
            if name in record.headers
        }  # fmt: skip
    elif topic == "labels":
        about["value"] = redaction.document(record.value)
    return msgspec.json.encode(about | redaction.value(record.value)).decode()


def _user_line(topic: str, record: ReadRecord, redaction: Redaction) -> str:
    parts = [when(record.timestamp_ms)]
    if topic == "labels" and isinstance(label := redaction.document(record.value), dict):
        parts += [str(label.get(name, "-")) for name in ("event_id", "label", "source")]
        if isinstance(probability := label.get("review_probability"), (int, float)):
            parts.append(f"reviewed with probability {probability:g}")
        return plain("  ".join(parts))
    parts.append(_place(record))
    if topic == "transactions.dlq":
        source = ":".join(text_header(record.headers, f"source.{n}") for n in ("topic", "partition", "offset"))
        parts += [text_header(record.headers, "error.code"), text_header(record.headers, "error.path") or "-"]
        parts += [text_header(record.headers, "error.message"), f"from {source}"]
    key = redaction.key(record.key)
    parts.append(f"key {key}" if key is not None else "no key" if record.key is None else "key hidden")
    about = redaction.value(record.value)
    parts.append(f"{about.pop('bytes')} bytes")
    if about:
        parts.append(msgspec.json.encode(next(iter(about.values()))).decode())
    elif topic not in USER_TOPICS and record.value is not None:
        parts.append("(not a topic of stream-scorer: --values prints the value)")
    return plain("  ".join(parts))


def _place(record: ReadRecord) -> str:
    return f"{record.partition}:{record.offset}"


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _head(at: int, event_id: str, decision: str, score: float | None) -> str:
    return f"{when(at)}  {event_id:<24}  {decision:<7}  {_number(score):>5}"


def _strongest(named: list[tuple[str, float]]) -> str:
    order = sorted(named, key=lambda pair: -abs(pair[1]))[:_STRONGEST]
    return ", ".join(f"{name} {contribution:+.2f}" for name, contribution in order) or "no member"


def _flags(record: Score | Alert) -> str:
    flags = [f"value {record.value}", f"{record.ensemble} {record.version}"]
    if record.decision_source != "model":
        flags.append(record.decision_source)
    if record.duplicate:
        flags.append("duplicate")
    if record.degraded:
        flags.append(f"degraded: {', '.join(record.degraded)} (coverage {record.coverage:.2f})")
    return ", ".join(flags)


def _score(r: Score, _at: int) -> str:
    return f"{_head(r.event_time, r.event_id, r.decision, r.score)}  {_flags(r)}"


def _alert(r: Alert, _at: int) -> str:
    reasons = _strongest([(reason.member, reason.contribution) for reason in r.reasons])
    return f"{_head(r.event_time, r.event_id, r.decision, r.score)}  {reasons}  {_flags(r)}"


def _contribution(r: Contribution, at: int) -> str:
    parts = _strongest([(member.name, member.contribution) for member in r.members.rows()])
    total = f"base {_number(r.base, '+.2f')}, z {_number(r.z, '+.2f')}"
    return f"{_head(at, r.event_id, '', r.score)}  {parts}  {total}, {r.ensemble} {r.version}"


def _lineage(batch: LineageBatch, at: int) -> str:
    header = batch.header
    place = f"{header.topic}:{batch.partition} {batch.offset[0]}..{batch.offset[-1] + 1}"
    by = ", ".join(f"{version.ensemble} {version.version}" for version in header.versions)
    missing, stale, partial = (int((batch.status == status).sum()) for status in (MISSING, STALE, PARTIAL))
    contents = f"{len(batch)} transactions of {len(header.features)} features"
    if missing or stale or partial:
        contents += f" ({missing} values missing, {stale} stale, {partial} partial)"
    command = "" if header.control_offset is None else f", by control offset {header.control_offset}"
    applied = sum(offset is not None for offsets in header.applied_offsets.values() for offset in offsets)
    return f"{when(at)}  {place}  {contents}, {by}{command}, offsets of {applied} inputs, code {header.code_version}"


def _outcome(r: Outcome, _at: int) -> str:
    change = f"{r.previous_label} -> {r.label}" if r.previous_label else r.label
    who = f"{r.ensemble} {r.version}".strip()
    return f"{_head(r.event_time, r.event_id, r.decision, None)}  {change} by {r.source}, value {r.value}, {who}"


def _metric(r: MonitorMetric, _at: int) -> str:
    value = _number(r.value, ".4g")
    bounds = "" if r.low is None and r.high is None else f" [{_number(r.low, '.4g')}, {_number(r.high, '.4g')}]"
    counts = "" if r.denominator is None else f" = {_count(r.numerator)}/{_count(r.denominator)}"
    if r.interval_low is not None and r.interval_high is not None:
        bounds += f" (95 %: {r.interval_low:.4g} to {r.interval_high:.4g})"
    if r.final is False:
        share = "unknown" if r.maturity is None else f"{r.maturity:.0%}"
        counts += f", not final: {share} of the labels at {(r.label_age or 0) / 3_600_000:.0f} h"
    window = f"{when(r.window_start)[:-7]} to {when(r.window_end)[:-7]}"
    state = "closed" if r.closed else "open"
    return (
        f"{window}  {r.metric}/{r.dimension}  {value}{bounds}{counts}  "
        f"{r.ensemble} {r.version}, {r.rows} transactions, {state}, revision {r.revision}"
    )


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _summary(r: ScoreSummary, at: int) -> str:
    decisions: dict[str, int] = {}
    for pane in r.panes:
        for decision, count in pane.decisions.items():
            decisions[decision] = decisions.get(decision, 0) + count
    counts = ", ".join(f"{count} {decision}" for decision, count in decisions.items()) or "nothing scored"
    place = f"{r.topic}:{r.partition} {r.first_offset}..{r.next_offset}"
    panes = f"{len(r.panes)} panes" if len(r.panes) != 1 else "1 pane"
    return f"{when(at)}  {place}  {counts}, {r.dead_letters} dead letters, {panes}, {r.ensemble} {r.version}"


def _command(r: Command, at: int) -> str:
    parts = [r.action, r.ensemble]
    parts += [r.version.version] if r.version is not None else []
    parts += [r.member.name] if r.member is not None else []
    parts += [percent(r.share)] if r.share is not None else []
    parts += ["(kept in shadow)"] if r.keep else []
    return f"{when(at)}  {' '.join(parts)}, by {r.who} ({r.author}), expected offset {r.expected_offset}: {r.why}"


def _serving(r: ServingState, at: int) -> str:
    details = {
        "on probation, compared with": r.last_good.version if r.probation and r.last_good is not None else "",
        "canary": f"{r.canary.version.version} for {percent(r.canary.share)}" if r.canary is not None else "",
        "shadows": ", ".join(shadow.version for shadow in r.shadows),
        "withdrawn in shadow": r.withdrawn.version if r.withdrawn is not None else "",
        "disabled": ", ".join(member.name for member in r.disabled),
        "on hold by": r.hold.who if r.hold is not None else "",
    }
    text = "".join(f", {name} {value}" for name, value in details.items() if value)
    return f"{when(at)}  {r.ensemble} {r.champion.version} serves{text}, control offset {r.control_offset}"


def _status(r: ScorerStatus, at: int) -> str:
    problem = f", behind {r.wanted_offset}: {r.problem}" if r.problem else ""
    in_play = ", ".join(r.in_play) or "nothing"
    return f"{when(at)}  {r.instance}  {r.ensemble} {in_play} in play, control offset {r.control_offset}{problem}"


def _audit(r: AuditRecord, at: int) -> str:
    what = f"refused ({r.refused}): {r.message}" if r.refused else f"loaded, {len(r.members)} members"
    return f"{when(at)}  {r.instance}  {r.ensemble} {r.version} ({r.manifest_sha256[:12]}) {what}"


def _incident(r: Incident, _at: int) -> str:
    if r.closed is not None:
        state = f"closed by control offset {r.ended_by}" if r.ended_by is not None else f"closed, {r.ended}"
        state = f"closed by {r.closed_by}, {r.ended}" if r.closed_by else state
    else:
        state = "open" + (f", {r.due} is due" if r.due is not None else "")
    held = f", {r.held_back}" if r.held_back and r.closed is None else ""
    whose = f"{r.ensemble} {r.version}" if r.kind == "verdict" else f"{r.kind} of {r.subject}"
    return f"{when(r.closed or r.updated or r.opened)}  {r.id}  {whose}: {state}{held}; {r.why}"


def _verdict(r: VerdictRecord, at: int) -> str:
    return f"{when(at)}  {r.id}  {r.ensemble} {r.version}: {'; '.join(fact for _, fact in verdict_facts(r))}"


FINDINGS: dict[Finding, str] = {
    "rise": "too many alerts",
    "fall": "too few alerts",
    "harmless": "harmless",
    "undecided": "undecided",
}


def verdict_facts(r: VerdictRecord) -> list[tuple[str, str]]:
    """The verdict, its basis, what is missing, and the expected time to a decision, each with a label."""
    from stream_scorer.control.label_verdict import describe

    cards = r.cards
    due = f", {r.due} is due" if r.due is not None else ""
    held = f" ({r.held_back})" if r.held_back else ""
    facts = [
        ("verdict", f"{r.version} compared with {r.baseline}: {FINDINGS[r.finding]}{due}{held}"),
        (
            "cards",
            f"{cards.both:,} alerted by both, {cards.candidate_only:,} only by {r.version}, "
            f"{cards.baseline_only:,} only by {r.baseline}, {cards.waiting:,} not counted yet",
        ),
        (
            "compared",
            f"{r.rows:,} transactions, alerts: {r.both:,} by both, {r.candidate_only:,} only by {r.version}, "
            f"{r.baseline_only:,} only by {r.baseline}; {r.excluded:,} transactions do not count",
        ),
    ]
    if r.cause is not None:
        cause = f"{r.cause.subject}: {r.cause.difference} ({r.cause.per_thousand:.1f} alerts per 1,000)"
        facts.append(("cause", cause))
    facts += [
        ("input", f"member {each.member} {each.difference} ({each.moved:.0%} of the transactions in another bin)")
        for each in r.inputs
    ]
    if (found := r.collection) is not None:
        until = f", at the latest until {when(found.until)} (event time)" if found.until is not None else ""
        state = f"ended: {found.ended}" if found.ended else f"{found.enough:,} are wanted{until}"
        facts.append(("shadow", f"{found.cards:,} cards alerted only by {r.version}, with its time in shadow; {state}"))
    if r.labels is not None:
        facts.append(("labels", describe(r.version, r.baseline, r.labels)))
        if r.labels.known:
            until = f"of all sources, given until {when(r.labels.known)}; label age {_span(r.labels.label_age)}"
            facts.append(("known", f"{until}{'; missing: ' * bool(r.labels.missing)}{', '.join(r.labels.missing)}"))
    if r.missing:
        facts.append(("missing", "; ".join(r.missing)))
    if r.finding == "undecided":
        facts.append(("decision", _expected(r)))
    return facts


def _expected(r: VerdictRecord) -> str:
    if r.more_rows is None:
        return "not expected soon at the counts so far"
    time = f", {_span(r.more_ms)} of event time" if r.more_ms is not None else ""
    return f"expected after about {r.more_rows:,} more transactions{time} at the rate so far"


def _span(ms: int) -> str:
    """A duration in its largest useful unit."""
    for unit, name in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min")):
        if ms >= 2 * unit:
            return f"{ms / unit:.0f} {name}"
    return f"{ms / 1_000:.0f} s"


_LINES: dict[type[Record], Callable[[Any, int], str]] = {
    Score: _score,
    Contribution: _contribution,
    Alert: _alert,
    ScoreSummary: _summary,
    Outcome: _outcome,
    MonitorMetric: _metric,
    Command: _command,
    ServingState: _serving,
    ScorerStatus: _status,
    AuditRecord: _audit,
    Incident: _incident,
    VerdictRecord: _verdict,
}
