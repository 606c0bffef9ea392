"""The defects of the audit: for each the test that found it, and a way to take its fix away again while the test runs.

A reverted fix is one replaced function or property, as near to the fix as there is a seam. The test must then fail.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import msgspec
import pytest

ROOT = Path(__file__).resolve().parent.parent
_UNIT, _INTEGRATION = "tests/unit/test_", "tests/integration/test_"


@dataclass(frozen=True, slots=True)
class Hole:
    """One defect.

    Attributes:
        number: that of the audit. defect: what was wrong. test: node id of the test, with all of its parameters.
        revert: inside the context that it returns, the fix is away.
    """

    number: int
    defect: str
    test: str
    revert: Callable[[], AbstractContextManager[Any]]

    @property
    def needs_services(self) -> bool:
        """Whether the test starts a Kafka or a Redis."""
        return self.test.startswith(_INTEGRATION)


def _replaced(target: str, make: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Inside the context, `target` (a dotted name) is what `make` makes of it."""

    def revert() -> AbstractContextManager[Any]:
        from pkgutil import resolve_name

        owner, _, name = target.rpartition(".")
        return patch.object(resolve_name(owner), name, make(resolve_name(target)))

    return revert


def _always(value: Any) -> Callable[[Any], Any]:
    """A function that returns `value`, whatever it is called with."""
    return lambda _original: lambda *_args, **_more: value


def _property(value: Any) -> Callable[[Any], Any]:
    return lambda _original: PropertyMock(return_value=value)


def _without_sensitive(check: Any) -> Any:
    def wrong(spec: Any) -> None:
        shape, replace = spec.transaction, msgspec.structs.replace
        fields = {name: replace(field, sensitive=False) for name, field in shape.fields.items()}
        check(replace(spec, transaction=replace(shape, fields=fields)))

    return wrong


def _no_loader_threads(_start: Any) -> Any:
    """A version loads in the thread that reads commands."""
    import threading

    def wrong(self: Any, version: Any) -> None:
        self._threads[version] = threading.Thread(target=lambda: None)
        self._threads[version].start()
        self._run(version)

    return wrong


@contextmanager
def _no_init() -> Iterator[None]:
    """Programs that start inside the context stay process 1 of their namespace."""
    with tempfile.TemporaryDirectory() as folder:
        code = "import stream_scorer.cli.init_process as m\nm.leave_process_one = lambda: None\n"
        (Path(folder) / "sitecustomize.py").write_text(code, encoding="utf-8")
        with patch.dict(os.environ, {"PYTHONPATH": folder}):
            yield


def _slowest_of_all(_original: Any) -> Any:
    return lambda self: min((w for w in self.watermark.values() if w >= 0), default=-1)


def _proposals_are_commands(follow: Any) -> Any:
    return lambda state, offset, command: follow(state, offset, msgspec.structs.replace(command, author="person"))


def _ends_with_a_record(read: Any) -> Any:
    """The position is that after the last record, whatever follows it."""

    def wrong(self: Any, wait_s: float) -> Any:
        before = self._position
        records = read(self, wait_s)
        self._position = records[-1].offset + 1 if records else before
        return records

    return wrong


def _ends_the_part(_back_off: Any) -> Any:
    def wrong(self: Any, _failure: BaseException) -> None:
        self._stop.set()

    return wrong


def _keeps_every_version(deciding: Any) -> Any:
    kept: list[Any] = []

    def wrong(self: Any, lineup: Any) -> Any:
        kept.append(lineup)
        return deciding(self, lineup)

    return wrong


def _waits_for_silent_partitions(mark_old: Any) -> Any:
    def wrong(self: Any, behind: Any) -> None:
        mark_old(self, {*behind, *self._newest})

    return wrong


def _turn_without_flush(_flush: Any) -> Any:
    """The next batch gets its turn although records of the last one were not taken; the failure is found later."""

    def wrong(self: Any, batch: Any) -> None:
        with self._changed:
            self._unflushed -= 1
            self._changed.notify_all()
        if batch.transaction is not None:
            import time

            time.sleep(0.2)
            batch.transaction.flush()

    return wrong


def _markup(_text: Any) -> Any:
    return lambda text, **_more: text


def _retires_by_number() -> AbstractContextManager[Any]:
    from stream_scorer.control import state as module

    def wrong(state: Any, command: Any) -> dict[str, object]:
        version = command.version
        canary = None if state.canary is not None and state.canary.version == version else state.canary
        shadows = [shadow for shadow in state.shadows if shadow != version]
        return {"retired": [*state.retired, version.manifest_sha256], "canary": canary, "shadows": shadows}

    return patch.dict(module._CHANGES, {"retire": wrong})


def _unpinned(read_text: Any) -> Any:
    def wrong(self: Path, *arguments: Any, **more: Any) -> str:
        text: str = read_text(self, *arguments, **more)
        return re.sub(r"@[0-9a-f]{40}", "@v4", text) if self.suffix == ".yml" else text

    return wrong


def _new_partitions_begin_nowhere(read_from: Any) -> Any:
    return lambda applied, sources: read_from(applied, [s for s in sources if s in applied.next_offset])


_DECODER, _STATE = "stream_scorer.serde.decoder.", "stream_scorer.control.state."
HOLES = [
    Hole(1, "a label in microseconds becomes the watermark of its partition",
         f"{_UNIT}decoder.py::test_bad_labels",
         _replaced(_DECODER + "LabelDecoder._implausible", lambda _: lambda _self, times, _ref: times < 0)),
    Hole(1, "the label joiner keeps labels with absurd times",
         f"{_UNIT}monitor_joiner.py::test_a_label_with_an_implausible_time_becomes_no_outcome_and_does_not_wait",
         _replaced("stream_scorer.monitor.joiner.JoinRules.plausible", _always(True))),
    Hole(1, "one pass deletes most feature rows",
         f"{_INTEGRATION}redis_rows.py::test_a_pass_that_would_delete_most_rows_deletes_none",
         _replaced("stream_scorer.state.expire._Pass.require_plausible", _always(None))),
    Hole(2, "features of a log that is too short are called fresh",
         f"{_UNIT}features_engine.py::test_a_window_that_reaches_back_to_before_the_log_is_partial",
         _replaced("stream_scorer.features.engine.FeatureEngine._mark_partial", _always(None))),
    Hole(2, "nothing compares the retention of the inputs with what features look back",
         f"{_UNIT}topic_config.py::test_inputs_must_be_kept_for_as_long_as_features_look_back",
         _replaced("stream_scorer.kafka.topic_config._short_retention", _always([]))),
    Hole(3, "key and headers of 10 MB are copied to every output",
         f"{_UNIT}pipeline.py::test_a_large_key_or_header_is_not_copied_to_every_output",
         _replaced("stream_scorer.pipeline.decode._large_envelopes", _always({}))),
    Hole(3, "a summary grows with panes times features",
         f"{_UNIT}pipeline.py::test_a_large_summary_is_several_records_that_count_the_same",
         _replaced("stream_scorer.pipeline.publish.OutputWriter._parts_of",
                   lambda _: lambda self, summary: [self._encode(summary)])),
    Hole(3, "an aborted batch is repeated at the same size for ever",
         f"{_UNIT}abort_streak.py::test_every_abort_halves_the_batch_down_to_one_record",
         _replaced("stream_scorer.pipeline.processor._AbortStreak.shrink", lambda _: lambda _self, most, _done: most)),
    Hole(4, "a rollback waits for the download of another version",
         f"{_UNIT}control.py::test_a_rollback_takes_effect_within_a_second_while_versions_load",
         _replaced("stream_scorer.control.loader.Loader._start", _no_loader_threads)),
    Hole(5, "the watchdog cannot kill process 1 of a container",
         f"{_UNIT}init_process.py::test_the_watchdog_ends_a_scorer_that_was_started_as_process_1", _no_init),
    Hole(6, "rows of busy entities grow while a partition or the label feed is silent",
         "tests/property/test_idle_partitions.py::"
         "test_rows_of_a_busy_entity_stay_bounded_while_a_partition_and_the_labels_are_silent",
         _replaced("stream_scorer.state.rows.AppliedOffsets.slowest_active_watermark", _slowest_of_all)),
    Hole(7, "a scorer that starts replaces the version that serves",
         f"{_UNIT}control.py::test_a_start_proposal_is_refused_while_a_version_serves",
         _replaced(_STATE + "follow", _proposals_are_commands)),
    Hole(7, "a control topic that lost its commands breaks starts, or serves another version",
         f"{_UNIT}control.py::test_a_log_without_its_beginning_gets_its_state_back_by_a_recorded_command",
         _replaced(_STATE + "History.incomplete", _property(False))),
    Hole(7, "wrong settings of a topic are not found",
         f"{_UNIT}topic_config.py::test_settings_that_lose_records_are_found",
         _replaced("stream_scorer.kafka.topic_config._problems", _always([]))),
    Hole(8, "a transactional record at the end of control blocks every reader",
         f"{_INTEGRATION}control_log.py::test_a_transaction_at_the_end_does_not_block_a_reader",
         _replaced("stream_scorer.kafka.control_log.ControlLog.read", _ends_with_a_record)),
    Hole(9, "one Redis timeout or a full disk ends the monitor",
         f"{_UNIT}monitor_parts.py::test_a_part_that_fails_does_not_stop_the_others_and_runs_again",
         _replaced("stream_scorer.monitor.parts.Part._back_off", _ends_the_part)),
    Hole(9, "negative counts of labels end the monitor at every start",
         f"{_UNIT}window_reports.py::test_labels_whose_first_record_retention_deleted_do_not_end_the_reporter",
         _replaced("stream_scorer.monitor.window_reports.negative_fields", _always(([], [])))),
    Hole(10, "a sensitive value or time is published",
         f"{_UNIT}spec.py::test_an_error_names_the_path",
         _replaced("stream_scorer.spec.load._check_roles", _without_sensitive)),
    Hole(10, "ids of sensitive entities are keys in Redis and of outputs, in clear text",
         f"{_UNIT}pipeline.py::test_ids_of_sensitive_entities_are_in_no_output_and_no_row",
         _replaced("stream_scorer.spec.pseudonyms.Pseudonyms._hash",
                   lambda _: lambda _self, identifier: identifier.decode())),
    Hole(10, "errors of the registry repeat its password",
         f"{_INTEGRATION}registry.py::test_no_error_of_the_registry_repeats_a_password",
         _replaced("stream_scorer.ensemble.registry.scrub", lambda _: lambda text: text)),
    Hole(10, "passwords reach logs",
         f"{_UNIT}logs.py::test_no_line_contains_a_secret",
         _replaced("stream_scorer.observability.logs.scrub", lambda _: lambda text, _secrets: text)),
    Hole(11, "every ensemble that ever decided stays in memory",
         f"{_UNIT}bounds.py::test_the_writer_keeps_no_former_version_in_memory",
         _replaced("stream_scorer.pipeline.publish.OutputWriter._deciding", _keeps_every_version)),
    Hole(11, "the disk cache is never cleaned",
         f"{_UNIT}bounds.py::test_the_disk_cache_keeps_what_is_in_use_and_what_was_used_last",
         _replaced("stream_scorer.ensemble.cache_cleanup.CacheCleanup.step", _always(None))),
    Hole(11, "a silent partition keeps every row in the joiner's store",
         f"{_UNIT}monitor_joiner.py::test_a_silent_partition_does_not_keep_rows",
         _replaced("stream_scorer.monitor.joiner.Joiner.mark_old", _waits_for_silent_partitions)),
    Hole(12, "/healthz is a constant",
         f"{_UNIT}health.py::test_a_process_is_not_alive_when_a_thread_stops_or_makes_no_progress",
         _replaced("stream_scorer.observability.liveness.Health.problems", _always([]))),
    Hole(12, "/readyz names one thing that is missing",
         f"{_UNIT}health.py::test_readiness_names_everything_that_is_missing",
         _replaced("stream_scorer.observability.liveness.Health.ready", _always((False, "starting")))),
    Hole(12, "after an automatic rollback the alias champion names the bad version",
         f"{_UNIT}aliases.py::test_the_alias_follows_a_rollback_by_the_monitor",
         _replaced("stream_scorer.control.aliases.AliasMirror.step", _always(None))),
    Hole(13, "a flush that times out breaks the order of outputs",
         f"{_UNIT}committer.py::test_no_batch_gets_its_turn_behind_records_that_the_broker_does_not_have",
         _replaced("stream_scorer.pipeline.committer.Committer._flush", _turn_without_flush)),
    Hole(13, "markup in a reason ends ensemble status",
         f"{_UNIT}console.py::test_the_text_of_a_table_is_neither_markup_nor_a_command_to_the_terminal",
         _replaced("stream_scorer.console.Text", _markup)),
    Hole(13, "a partition added at run time ends the process with a KeyError",
         f"{_UNIT}starting_points.py::test_a_partition_added_at_run_time_is_refused",
         _replaced("stream_scorer.pipeline.starting_points._read_from", _new_partitions_begin_nowhere)),
    Hole(13, "amounts without a maximum overflow int64 sums",
         f"{_UNIT}decoder.py::test_an_amount_without_a_maximum_cannot_overflow_sums",
         _replaced(_DECODER + "MAX_VALUE", lambda _: 2**53)),
    Hole(13, "sums mix currencies",
         f"{_UNIT}decoder.py::test_amounts_of_other_currencies_are_converted",
         _replaced("stream_scorer.serde.currency.Currencies.convert", lambda _: lambda _self, value, _columns: value)),
    Hole(13, "each label source adds a field to the counters in Redis",
         f"{_UNIT}monitor_windows.py::test_labels_add_a_bounded_number_of_fields",
         _replaced("stream_scorer.monitor.tally.listed", lambda _: lambda source, _sources: source)),
    Hole(13, "retire compares numbers instead of digests",
         f"{_UNIT}control.py::test_a_version_is_retired_by_its_digest_also_from_a_rollback",
         _retires_by_number),
    Hole(13, "the cool-down is forgotten after 1,000 records on control",
         f"{_UNIT}control.py::test_a_cool_down_and_the_start_of_a_pair_outlast_the_records_kept_for_display",
         _replaced(_STATE + "History._remember", _always(None))),
    Hole(13, "actions of CI are not pinned by digest",
         f"{_UNIT}deploy.py::test_every_action_of_ci_is_pinned_by_digest",
         _replaced("pathlib.Path.read_text", _unpinned)),
]  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """Results by node id without parameters; `skipped` and `failed` hold the tests with at least one such case.

    `reasons` holds the first line of the first failure of each test.
    """

    reverting: bool
    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)
    output: str = ""

    def result(self, hole: Hole) -> str:
        """``passed``, ``failed``, ``skipped`` or ``not found``."""
        for name, tests in (("failed", self.failed), ("skipped", self.skipped), ("passed", self.passed)):
            if hole.test in tests:
                return name
        return "not found"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Called by pytest."""
        with ExitStack() as reverted:
            for hole in HOLES if self.reverting else ():
                if hole.test == _without_parameters(item.nodeid):
                    reverted.enter_context(hole.revert())
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        test = _without_parameters(report.nodeid)
        if report.failed:
            self.failed.add(test)
            crash = getattr(report.longrepr, "reprcrash", None)
            self.reasons.setdefault(test, str(getattr(crash, "message", report.longrepr)).partition("\n")[0])
        elif report.skipped:
            self.skipped.add(test)
        elif report.when == "call":
            self.passed.add(test)


def _without_parameters(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def run_tests(holes: Iterable[Hole], *, reverting: bool) -> Outcome:
    """Run the tests of `holes` in this process, each without its fix if `reverting`."""
    outcome, text = Outcome(reverting), io.StringIO()
    options = ["-p", "no:cacheprovider", "-p", "no:faulthandler", "-o", "timeout=120", "--rootdir", str(ROOT)]
    tests = dict.fromkeys(str(ROOT / hole.test) for hole in holes)
    with contextlib.redirect_stdout(text):
        pytest.main([*options, *tests], plugins=[outcome])
    outcome.output = text.getvalue()
    return outcome
