"""The report's page: everything in one file, every text escaped, the same bytes for the same run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from stream_scorer.errors import SettingsError
from stream_scorer.reports import html
from stream_scorer.reports.facts import facts_of
from stream_scorer.reports.html import page, write_page
from stream_scorer.reports.story import Check
from tests.support.stories import make_story, with_incident

HOSTILE = "\"'><script>alert(1)</script><img src=//evil.example/x onerror=alert(1)>&amp;"
_VOID = {"meta", "br", "img", "input", "link"}


class Page(HTMLParser):
    """Collects elements, attributes and ids, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def text() -> str:
    story = make_story()
    return page(story, facts_of(story))


def test_nothing_is_loaded_from_anywhere(text: str) -> None:
    assert not re.search(r"https?://|//\w", text.replace("<!doctype", ""))
    assert "@import" not in text
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(found.elements)
    for _tag, name, value in found.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href"):
            assert value.startswith("#")
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_every_reference_of_a_drawing_leads_somewhere_and_ids_are_unique(text: str) -> None:
    ids = [value for _, name, value in Page(text).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for _, name, value in Page(text).attributes if name == "href"}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert wanted
    assert wanted <= set(ids)


def test_it_shows_the_plots_with_captions(text: str) -> None:
    found = Page(text)
    assert found.elements.count("svg") >= 9
    assert found.elements.count("figcaption") >= found.elements.count("figure") > 8


def test_it_follows_light_and_dark(text: str) -> None:
    assert "prefers-color-scheme: dark" in text
    # Letters that a drawing gives no colour are black otherwise.
    assert re.search(r"svg text \{[^}]*fill: currentColor", text)
    assert "#010203" not in text


def test_hostile_text_stays_text() -> None:
    story = with_incident(make_story(event_id=HOSTILE.replace("{", "") + "{}"))
    (*_, rollback) = story.recording.commands
    object.__setattr__(rollback, "command", msgspec.structs.replace(rollback.command, who=HOSTILE, why=HOSTILE))
    object.__setattr__(story.update, "member", HOSTILE)
    story.title = story.machine = HOSTILE
    story.checks.append(Check(HOSTILE, False, HOSTILE))
    story.recording.dead.code[0] = HOSTILE
    story.labels[HOSTILE] = 1
    story.recording.contributions.members[0] = HOSTILE
    object.__setattr__(story, "kinds", ("genuine", HOSTILE, "device_farm"))
    story.recording.metrics[:] = [
        m
        if m.dimension != "amount"
        else type(m)(**{f: getattr(m, f) for f in m.__struct_fields__} | {"dimension": HOSTILE})
        for m in story.recording.metrics
    ]
    found = Page(page(story, facts_of(story)))
    assert not {"script", "img"} & set(found.elements)
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert found.text.count("<script>alert(1)</script>") >= 6


def test_the_same_run_gives_the_same_bytes(text: str) -> None:
    story = make_story()
    assert page(story, facts_of(story)) == text


def test_a_run_that_showed_nothing_still_has_its_page() -> None:
    story = make_story(2)
    story.recording.metrics.clear()
    story.truth.kind[:] = 0
    assert "There was no true alert to explain." in page(story, facts_of(story))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "page", lambda *_: "")
    (tmp_path / "file").write_text("")
    story = make_story(2)
    with pytest.raises(SettingsError, match="cannot write"):
        write_page(story, facts_of(story), tmp_path / "file" / "index.html")
