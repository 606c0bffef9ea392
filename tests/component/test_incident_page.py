"""The page of an incident: made from records alone, self-contained, with the same bytes at any later time."""

from __future__ import annotations

from html.parser import HTMLParser

import msgspec
import pytest

from stream_scorer.records import (
    Affected,
    Command,
    Incident,
    MonitorMetric,
    PaneSummary,
    Saved,
    ScoreSummary,
    Source,
)
from stream_scorer.reports.incident_page import IncidentRecords, Traffic, facts, incident_page

MINUTE = 60_000
OPENED = 1_699_999_980_000  # the beginning of a minute
HOSTILE = "<script>alert('x')</script>&\"{{ 7 * 7 }}"


def summary(minute: int, *, partition: int = 0, version: str = "8", rows: int = 100) -> tuple[int, ScoreSummary]:
    at = OPENED + minute * MINUTE
    pane = PaneSummary(
        at, rows, 0, 0, 0, {"approve": rows - 5, "review": 5}, {"approve": 900, "review": 100}, {}, {}, {}, [], {},
        {"7": [2, 3, 1, rows - 6]},
    )  # fmt: skip
    return at, ScoreSummary("cards", version, "champion", MINUTE, "transactions", partition, 0, 9, 0, [pane], 4, {}, at)


def incident(kind: str = "errors", **more: object) -> Incident:
    fields: dict[str, object] = {
        "id": f"{kind}-cards-1", "kind": kind, "ensemble": "cards", "subject": "cards", "opened": OPENED,
        "opened_event": OPENED - 5_000, "why": "3 % of the transactions have no score", "done": "the fallback decides",
        "affected": Affected(1_234, 56, money=7_890_100, how="counted"), "statistics": {"share": 0.03, "rows": 9},
        "limits": {"share": 0.01}, "first": [Source("transactions", 2, 4_711)],
    }  # fmt: skip
    return Incident(**(fields | more))  # type: ignore[arg-type]


def closed(before: Incident) -> Incident:
    return msgspec.structs.replace(before, closed=OPENED + 10 * MINUTE, ended="it is over", statistics={"share": 0.04})


class Content(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.mark.parametrize("kind", ["verdict", "drift", "errors"])
def test_every_kind_has_a_page_with_what_happened_and_to_how_many(kind: str) -> None:
    opened = incident(kind, version="8", baseline="7", since=4, rows=100, field="amount")
    metric = MonitorMetric(
        "drift_score", "amount_log", OPENED, OPENED + MINUTE, 1, True, "cards", "8", 0.3, None, None, None, None, 9,
        None, {},
    )  # fmt: skip
    traffic = Traffic(closed(opened), [summary(m) for m in range(-30, 40)])
    records = IncidentRecords([opened, closed(opened)], traffic, [metric])
    page = incident_page(records)
    content = Content(page)
    text = " ".join(content.text.split())
    for part in (
        "1,234 transactions",
        "56 cards",
        "7,890,100 minor units",
        "it is over",
        "4,711",
        "the fallback decides",
    ):
        assert part in text, part
    assert "2023-11-14 22:13:00" in text
    assert ("before 3,000 150 50.00 30,000 3,000" in text) and ("after 3,000 150" in text)
    assert [tag for tag, _ in content.tags].count("svg") >= 3
    # Nothing is loaded from elsewhere, and nothing runs.
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in content.tags}
    assert not [attrs for _, attrs in content.tags if "src" in attrs]
    assert "http" not in page.replace("http-equiv", "")


def test_drift_shows_the_inputs_of_the_field_with_the_largest_distances() -> None:
    names = ["category", *(f"at_{i}" for i in range(8))]
    metrics = [
        MonitorMetric(
            "drift_score", name, OPENED, OPENED + MINUTE, 1, True, "cards", "8", place / 10, None, None, None, None, 9,
            None, {},
        )
        for place, name in enumerate(names)
    ]  # fmt: skip
    page = incident_page(IncidentRecords([incident("drift", field="at")], None, metrics))
    assert [name for name in names if f">{name}<" in page] == [f"at_{i}" for i in range(2, 8)]


def test_the_same_records_give_the_same_bytes_and_later_ones_change_nothing() -> None:
    opened = incident()
    history = [opened, closed(opened)]
    summaries = [summary(m) for m in range(60)]
    one = incident_page(IncidentRecords(history, Traffic(history[-1], summaries)))
    assert incident_page(IncidentRecords(history, Traffic(history[-1], reversed(summaries)))) == one


def test_hostile_names_are_text() -> None:
    opened = incident(why=HOSTILE, subject=HOSTILE, member=HOSTILE, done=HOSTILE, id="errors-x")
    command = Command(
        ensemble="cards", action="hold", who=HOSTILE, why=HOSTILE, at=OPENED, expected_offset=3
    )  # fmt: skip
    page = incident_page(IncidentRecords([opened], commands=[(3, command)]))
    assert "<script" not in page
    assert HOSTILE in Content(page).text


def test_without_summaries_the_page_says_so() -> None:
    assert "The topic score-summaries has no record" in incident_page(IncidentRecords([incident()]))


def test_what_an_action_saved_is_said_with_its_estimate() -> None:
    saved = Saved(50_000, 120, "estimated: at the measured excess")
    found = dict(facts(closed(incident(saved=saved))))
    assert found["what it saved"] == "120 alerts prevented; estimated: at the measured excess"
    missing = msgspec.structs.replace(saved, alerts=-7)
    assert "7 alerts brought back" in dict(facts(incident(saved=missing)))["what it saved"]
    assert "<b>7</b><span>alerts brought back</span>" in incident_page(IncidentRecords([incident(saved=missing)]))
    assert "what it saved" not in dict(facts(incident()))
