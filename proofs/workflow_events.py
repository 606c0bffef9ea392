"""A server that receives OpenLineage events, and a check of them against the model of the client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openlineage.client import event_v2
from openlineage.client.facet_v2 import dataset_version_dataset, error_message_run, job_type_job, tags_run
from openlineage.client.serde import Serde

_FACETS: dict[str, Any] = {
    "version": dataset_version_dataset.DatasetVersionDatasetFacet,
    "errorMessage": error_message_run.ErrorMessageRunFacet,
    "jobType": job_type_job.JobTypeJobFacet,
}


class Receiver:
    """The events in the order of their arrival, and the address of the server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.events: list[dict[str, Any]] = []

    def of(self, job: str) -> list[dict[str, Any]]:
        """The events of one kind of run."""
        return [event for event in self.events if event["job"]["name"] == job]

    def kinds(self, job: str) -> list[list[str]]:
        """The kinds of events of each run, in their order."""
        runs: dict[str, list[str]] = {}
        for event in self.of(job):
            runs.setdefault(event["run"]["runId"], []).append(event["eventType"])
        return list(runs.values())


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A server on loopback that keeps what it receives."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.events.append(json.loads(body))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def problem_of(event: Mapping[str, Any]) -> str:
    """Why `event` is not valid: its client's model, built from the event, must give the same JSON again."""
    try:
        model = event_v2.RunEvent(
            eventTime=event["eventTime"],
            eventType=event_v2.RunState[event["eventType"]],
            producer=event["producer"],
            run=event_v2.Run(event["run"]["runId"], facets=_facets(event["run"])),
            job=event_v2.Job(event["job"]["namespace"], event["job"]["name"], facets=_facets(event["job"])),
            inputs=[event_v2.InputDataset(d["namespace"], d["name"], facets=_facets(d)) for d in event["inputs"]],
            outputs=[event_v2.OutputDataset(d["namespace"], d["name"], facets=_facets(d)) for d in event["outputs"]],
        )
        again = json.loads(Serde.to_json(model))
    except (KeyError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if again == event else f"the model gives {json.dumps(again)} for {json.dumps(event)}"


def _facets(part: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, facet in part["facets"].items():
        fields = {key: value for key, value in facet.items() if not key.startswith("_")}
        if name == "tags":
            fields = {"tags": [tags_run.TagsRunFacetFields(**each) for each in fields["tags"]]}
        kind = tags_run.TagsRunFacet if name == "tags" else _FACETS[name]
        found[name] = kind(**fields, producer=facet["_producer"])
    return found
