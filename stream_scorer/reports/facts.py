"""The figures of a story, computed once for the HTML page and the terminal report."""

from __future__ import annotations

from dataclasses import dataclass

from stream_scorer.records import MonitorMetric
from stream_scorer.reports.delivery import Delivery, delivery_of
from stream_scorer.reports.explain import Explained, explained_alerts
from stream_scorer.reports.incident import Incident, incident_of
from stream_scorer.reports.latency import Latency, latency_of
from stream_scorer.reports.quality import Judged, Quality, judged, qualities, recall_by_kind
from stream_scorer.reports.story import Story
from stream_scorer.reports.windows import Bound, bounds, drifts, windows_seen


@dataclass(frozen=True)
class Facts:
    """The results of the functions that `facts_of` calls."""

    delivery: Delivery
    latency: Latency
    events: Judged
    qualities: list[Quality]
    kinds: list[tuple[str, int, int]]
    explained: list[Explained]
    bounds: list[Bound]
    drifts: dict[str, list[MonitorMetric]]
    windows: int
    incident: Incident | None

    @property
    def truth_inside(self) -> tuple[int, int]:
        """The number of windows with ripe labels whose bounds contain the truth, and the number of such windows."""
        ripe = [bound.contains_truth for bound in self.bounds if bound.ripe and bound.contains_truth is not None]
        return sum(ripe), len(ripe)


def facts_of(story: Story) -> Facts:
    """Compute all figures of `story`."""
    events = judged(story)
    delivery = delivery_of(story.recording)
    return Facts(
        delivery=delivery,
        latency=latency_of(story.recording) if not delivery.unpaired else Latency.none(),
        events=events,
        qualities=qualities(story, events),
        kinds=recall_by_kind(story, events),
        explained=explained_alerts(story, events),
        bounds=bounds(story, events),
        drifts=drifts(story),
        windows=windows_seen(story.recording.metrics),
        incident=incident_of(story, events),
    )
