"""The figures of a report: delivery, latency, quality against the truth, windows, explanations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_scorer.control.cards import CardCounts
from stream_scorer.control.verdict import Evidence, Tolerances
from stream_scorer.reports import plots
from stream_scorer.reports.delivery import check_delivery, delivery_of
from stream_scorer.reports.explain import Explained, Part, explained_alerts
from stream_scorer.reports.facts import facts_of
from stream_scorer.reports.incident import incident_of
from stream_scorer.reports.latency import latency_of, percentiles
from stream_scorer.reports.quality import judged, qualities, recall_by_kind
from stream_scorer.reports.story import Check
from stream_scorer.reports.terminal import closing_report
from stream_scorer.reports.windows import bounds, drifts, final
from tests.support.stories import HOUR, START, make_story, metric, places, with_incident


class TestDelivery:
    def test_every_input_with_one_output_is_exact(self) -> None:
        found = check_delivery(places((0, 5), (0, 6), (1, 5)), places((1, 5), (0, 5)), places((0, 6)))
        assert found.exact
        assert found.verdict == "3 in = 2 scored + 1 dead-lettered; none lost, none doubled"

    def test_a_lost_record_is_named(self) -> None:
        found = check_delivery(places((0, 5), (3, 6)), places((0, 5)), places())
        assert not found.exact
        assert list(zip(found.lost.partition, found.lost.offset, strict=True)) == [(3, 6)]
        assert "1 lost (partition 3 offset 6)" in found.verdict

    def test_a_doubled_record_is_named_once_for_each_copy_too_many(self) -> None:
        found = check_delivery(places((0, 5), (0, 6)), places((0, 5), (0, 6), (0, 6), (0, 6)), places())
        assert not found.exact
        assert list(found.doubled.offset) == [6, 6]
        assert "2 doubled" in found.verdict

    def test_a_score_and_a_dead_letter_for_one_record_are_two_outputs(self) -> None:
        found = check_delivery(places((0, 5)), places((0, 5)), places((0, 5)))
        assert len(found.doubled) == 1

    def test_an_output_without_an_input_is_unexpected(self) -> None:
        found = check_delivery(places((0, 5)), places((0, 5), (0, 4)), places())
        assert list(found.unexpected.offset) == [4]
        assert not found.exact

    def test_a_loss_and_a_double_do_not_cancel(self) -> None:
        found = check_delivery(places((0, 5), (0, 6)), places((0, 5), (0, 5)), places())
        assert (len(found.lost), len(found.doubled)) == (1, 1)

    @given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2**40)), unique=True, max_size=40), st.data())
    def test_any_single_fault_is_found(self, pairs: list[tuple[int, int]], data: st.DataObject) -> None:
        split = data.draw(st.integers(0, len(pairs)))
        scored, dead = pairs[:split], pairs[split:]
        assert check_delivery(places(*pairs), places(*scored), places(*dead)).exact
        if scored:
            place = data.draw(st.integers(0, len(scored) - 1))
            without = scored[:place] + scored[place + 1 :]
            assert len(check_delivery(places(*pairs), places(*without), places(*dead)).lost) == 1
            twice = [*scored, scored[place]]
            assert len(check_delivery(places(*pairs), places(*twice), places(*dead)).doubled) == 1

    def test_scores_and_lineages_must_name_the_same_events(self) -> None:
        story = make_story()
        assert delivery_of(story.recording).exact
        ids = story.recording.scores.event_id
        ids[3], ids[4] = ids[4], ids[3]
        assert delivery_of(story.recording).unpaired == 0  # the lists are shared: both changed alike
        story.recording.scores.event_id[:] = list(ids)
        shuffled = list(ids)
        shuffled[3], shuffled[4] = shuffled[4], shuffled[3]
        object.__setattr__(story.recording.scores, "event_id", shuffled)
        assert delivery_of(story.recording).unpaired == 2


class TestLatency:
    def test_percentiles_are_measured_values_by_nearest_rank(self) -> None:
        values = np.arange(1.0, 1001.0)
        assert percentiles(values) == {50.0: 500.0, 90.0: 900.0, 99.0: 990.0, 99.9: 999.0}
        assert percentiles(np.array([3.0]), (50.0, 99.9)) == {50.0: 3.0, 99.9: 3.0}
        assert all(math.isnan(value) for value in percentiles(np.zeros(0)).values())

    def test_each_score_is_matched_with_its_own_input(self) -> None:
        found = latency_of(make_story().recording)
        assert len(found.at) == 200
        assert set(found.scored.tolist()) == {7.0}
        assert set(found.arrived.tolist()) == {12.0}


class TestQuality:
    def test_second_copies_do_not_count(self) -> None:
        story = make_story()
        events = judged(story)
        assert len(events.row) == 190
        assert int(events.fraud.sum()) == 20

    def test_a_perfect_score_has_average_precision_one(self) -> None:
        story = make_story()
        events = judged(story)
        whole = qualities(story, events)[0]
        assert whole.name == "ensemble"
        assert whole.average_precision == pytest.approx(1.0)
        assert (whole.alerts.caught, whole.alerts.frauds) == (20, 20)
        assert whole.alerts.precision == whole.alerts.recall == 1.0

    def test_members_are_judged_by_their_own_scores(self) -> None:
        story = make_story()
        events = judged(story)
        story.recording.contributions.member_score[:, 1] = 0.1
        assert qualities(story, events)[2].alerts.alerts == 0
        assert qualities(story, events)[2].alerts.precision is None
        assert qualities(story, events)[1].alerts.alerts > 0

    def test_recall_is_shown_by_kind(self) -> None:
        story = make_story()
        assert recall_by_kind(story, judged(story)) == [("stolen_card", 10, 10), ("device_farm", 10, 10)]


class TestWindows:
    def test_the_last_revision_counts(self) -> None:
        story = make_story()
        assert [m.high for m in final(story) if m.metric == "fpr"] == [0.1]
        (bound,) = bounds(story, judged(story))
        assert (bound.low, bound.high, bound.ripe) == (0.0, 0.1, True)
        assert bound.truth == 0.0
        assert bound.contains_truth

    def test_the_length_of_a_drift_event_is_none_of_the_windows(self) -> None:
        story = make_story()
        story.recording.metrics.append(metric("drift_event", "scale", START - 48 * HOUR, 72, value=1.0))
        assert len(bounds(story, judged(story))) == 1
        assert facts_of(story).drifts

    def test_truth_outside_of_the_bounds_is_shown(self) -> None:
        story = make_story()
        story.recording.metrics[:] = [
            metric("fpr", "review+block", START, 24, low=0.2, high=0.3, label_age=50 * HOUR, revision=9)
        ]
        assert facts_of(story).truth_inside == (0, 1)

    def test_calendar_columns_and_thin_windows_show_no_drift(self) -> None:
        assert list(drifts(make_story())) == ["score", "amount"]


class TestExplained:
    def test_base_and_contributions_add_up(self) -> None:
        story = make_story()
        found = explained_alerts(story, judged(story))
        assert len(found) == 3
        assert {alert.kind for alert in found[:2]} == {"stolen_card", "device_farm"}
        for alert in found:
            assert alert.residual < 1e-9
            assert [abs(p.contribution) for p in alert.parts] == sorted(
                (abs(p.contribution) for p in alert.parts), reverse=True
            )

    def test_without_a_true_alert_there_is_nothing_to_explain(self) -> None:
        story = make_story()
        story.truth.kind[:] = 0
        assert explained_alerts(story, judged(story)) == []


class TestIncident:
    def test_both_versions_are_counted_on_the_same_transactions(self) -> None:
        story = with_incident(make_story())
        events = judged(story)
        found = incident_of(story, events)
        assert found is not None and found.promoted is not None and found.rollback is not None
        decided = story.recording.scores.decision[100:150] > 0
        assert (found.overall.rows, found.overall.candidate, found.overall.baseline) == (50, int(decided.sum()), 0)
        first = events.row[(events.row >= 100) & (events.row < 150)]
        genuine = [row for row in first.tolist() if events.kind[events.row.tolist().index(row)] == 0]
        assert found.genuine.rows == len(genuine)
        assert found.genuine.candidate == int((story.recording.scores.decision[genuine] > 0).sum())
        assert found.rollback_s == 1.2
        assert found.last_score_s is not None and math.isclose(found.last_score_s, found.seconds.max() - 1.2)
        assert found.candidate[-1] == decided.sum() and found.baseline[-1] == 0

    def test_its_evidence_is_the_monitors(self) -> None:
        story = with_incident(make_story())
        found = incident_of(story, judged(story))
        assert found is not None
        both, candidate_only, baseline_only = found.cards[-1].tolist()
        assert candidate_only + baseline_only > 0
        monitor = Evidence.of(CardCounts(both, candidate_only, baseline_only), Tolerances())
        assert math.isclose(found.evidence[-1] * math.log(10), monitor.rise)

    def test_windows_are_of_the_version_before(self) -> None:
        story = make_story()
        story.recording.metrics.append(
            metric("fpr", "review+block", START, 24, low=0.7, high=0.9, label_age=50 * HOUR, revision=9, version="2")
        )
        assert [m.high for m in final(story) if m.metric == "fpr"] == [0.1]

    def test_the_closing_report_tells_it(self) -> None:
        story = with_incident(make_story())
        text = "\n".join(closing_report(story, facts_of(story), Path("report/index.html"), 10.0))
        assert "gbdt reads amount_log at 1.5 times its scale, with 67% of the weight instead of 50%" in text
        assert "rolled back by watcher after 1.2 s" in text
        assert "incident cards-1: rise of alerted cards, 9 transactions alerted by version 2 only" in text
        assert "it names member gbdt, input amount_log: reads <amount_log> at 1.5 times its scale" in text
        assert "closed: rolled back" in text
        story = with_incident(make_story(), rolled_back=False)
        text = "\n".join(closing_report(story, facts_of(story), Path("report/index.html"), 10.0))
        assert "it was not rolled back" in text


def test_the_closing_report_says_what_failed_and_is_short() -> None:
    story = make_story()
    lines = closing_report(story, facts_of(story), Path("somewhere/index.html"), 4.0)
    assert lines[0] == "a run: passed in 4 s on 2 cores"
    assert len(lines) <= 30
    assert any("somewhere/index.html" in line for line in lines)
    story.checks.append(Check("the monitor published windows", False, "0 windows"))
    lines = closing_report(story, facts_of(story), Path("x"), 4.0)
    assert lines[0].startswith("a run: FAILED")
    assert "  FAIL the monitor published windows: 0 windows" in lines


@pytest.mark.parametrize("unit", ["log-odds", "probability"])
def test_a_waterfall_names_the_scale_of_the_link(unit: str) -> None:
    alert = Explained("e1", 0, 100, "block", "", 0.1, [Part("gbdt", 0.5, 1.0, 0.2)], 0.3, 0.3, unit)
    axes = plots._waterfall(alert).axes[0]
    assert axes.get_xlabel() == unit
