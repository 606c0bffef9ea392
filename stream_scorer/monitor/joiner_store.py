"""The store of the label joiner: every decision younger than twice the label horizon, with its effective label.

A row takes about 130 bytes (with event ids of 36 characters), so the file takes 130 bytes times the transactions in
twice ``labels.horizon`` plus ``time.allowed_lateness`` of event time. It reuses the space of deleted rows and never
shrinks.

SQLite with one file and one writer. Rows, waiting labels and input positions change in one SQLite transaction.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from stream_scorer.errors import SettingsError, StreamScorerError

_log = logging.getLogger("stream_scorer.monitor.joiner_store")

Partition = tuple[str, int]

# Milliseconds of the year 2248. Former versions let labels in micro- or nanoseconds wait, which never became old.
_MAX_TIME_MS = 2**43

_SCHEMA = """
CREATE TABLE IF NOT EXISTS context (
    id INTEGER PRIMARY KEY, ensemble TEXT, version TEXT, arm TEXT, policy_version TEXT,
    UNIQUE (ensemble, version, arm, policy_version));
CREATE TABLE IF NOT EXISTS decided (
    event_id TEXT PRIMARY KEY, event_time INTEGER, context INTEGER, decision INTEGER, member_alerts INTEGER,
    value INTEGER, label INTEGER, source TEXT, probability REAL,
    rank INTEGER, labelled_at INTEGER, log_offset INTEGER, log_partition INTEGER,
    propensity REAL, card_group INTEGER, rule TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS decided_by_time ON decided (event_time);
CREATE TABLE IF NOT EXISTS waiting (
    event_id TEXT PRIMARY KEY, label INTEGER, source TEXT, probability REAL,
    rank INTEGER, labelled_at INTEGER, log_offset INTEGER, log_partition INTEGER, since INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS position (topic TEXT, number INTEGER, next_offset INTEGER, PRIMARY KEY (topic, number));
CREATE TABLE IF NOT EXISTS written (id INTEGER PRIMARY KEY CHECK (id = 0), at INTEGER);
CREATE TABLE IF NOT EXISTS labels_lost (id INTEGER PRIMARY KEY CHECK (id = 0), before INTEGER);
"""
# Columns that stores of former versions lack.
_ADDED = {
    "decided": {"propensity": "REAL", "card_group": "INTEGER", "rule": "TEXT"},
    "waiting": {"since": "INTEGER"},
}


def store_error(path: Path | str, error: sqlite3.Error) -> StreamScorerError:
    """The error of a store that cannot be read or written."""
    return StreamScorerError(f"the joiner's store {path}: {error}", hint="Is the disk full, or the file damaged?")


class Context(NamedTuple):
    """Ensemble, version, arm and policy of a decision. Many rows share one context."""

    ensemble: str
    version: str
    arm: str
    policy_version: str


class LabelRecord(NamedTuple):
    """One label of an event. Of several, the one with the greatest `order` is effective."""

    label: int
    source: str
    probability: float | None
    rank: int
    labelled_at: int
    log_offset: int
    log_partition: int

    @property
    def order(self) -> tuple[int, int, int, int]:
        """(source rank, labelled at, offset), then the partition, so that no two labels tie."""
        return (self.rank, self.labelled_at, self.log_offset, self.log_partition)

    def same_content(self, other: LabelRecord | None) -> bool:
        """Whether both give the same outcome."""
        return other is not None and self[:3] == other[:3]


class ScoredTransaction(NamedTuple):
    """One scored transaction with its effective label. `decision` is an index into DECISIONS.

    `propensity`, `card_group` and `rule` are `review_propensity` and the fields of that name of its score.
    """

    event_id: str
    event_time: int
    context: int
    decision: int
    member_alerts: int
    value: int
    propensity: float | None = None
    card_group: int | None = None
    rule: str | None = None
    effective: LabelRecord | None = None


# Number of fields of a scored transaction without its label.
_SCORED = len(ScoredTransaction._fields) - 1


class JoinerStore:
    """The joiner's tables. Open it in the thread that uses it; `commit` or `rollback` ends each batch."""

    def __init__(self, path: Path | str) -> None:
        """Open or create the file at `path`.

        Raises:
            SettingsError: another joiner has locked the file.
            StreamScorerError: the file cannot be opened or written.
        """
        db = None
        try:
            self._db = db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
            # One writer: the first statement of a second joiner on the same file fails.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            # After a power failure, the last batches are lost together with their positions and are read again.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA cache_size=-65536")  # 64 MB
            self._db.executescript(_SCHEMA)
            for table, columns in _ADDED.items():
                present = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
                for name in columns.keys() - present:
                    self._db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {columns[name]}")
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM waiting WHERE labelled_at > ?", (_MAX_TIME_MS,))
            # Those of a former version wait from now on.
            self._db.execute("UPDATE waiting SET since = strftime('%s', 'now') * 1000 WHERE since IS NULL")
        except sqlite3.Error as error:
            if db is not None:
                db.close()  # otherwise its lock refuses the next attempt of this process
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise SettingsError(
                    f"the joiner's store {path}: {error}",
                    hint="Is another monitor running on the same state folder? Give each its own --state-dir.",
                ) from error
            raise store_error(path, error) from error
        self._contexts: dict[Context, int] = {}
        self._names: dict[int, Context] = {}
        for row in self._db.execute("SELECT id, ensemble, version, arm, policy_version FROM context"):
            self._register(Context(*row[1:]), row[0])

    def _register(self, context: Context, number: int) -> None:
        self._contexts[context] = number
        self._names[number] = context

    def context_id(self, context: Context) -> int:
        """The number of `context`; assigns one on first use."""
        number = self._contexts.get(context)
        if number is None:
            row = self._db.execute(
                "INSERT INTO context (ensemble, version, arm, policy_version) VALUES (?, ?, ?, ?) RETURNING id", context
            ).fetchone()
            number = int(row[0])
            self._register(context, number)
        return number

    def context(self, number: int) -> Context:
        """The context with this number."""
        return self._names[number]

    def positions(self) -> dict[Partition, int]:
        """Next offset to read per input partition; empty for a new store."""
        return {(t, n): o for t, n, o in self._db.execute("SELECT topic, number, next_offset FROM position")}

    def written_at(self) -> int | None:
        """When positions were last stored (epoch ms); None for a new store, and one of a former version."""
        row = self._db.execute("SELECT at FROM written").fetchone()
        return None if row is None else int(row[0])

    def set_positions(self, positions: Mapping[Partition, int], now_ms: int) -> None:
        """Store the positions in the transaction of the changes that the records caused."""
        self._db.execute("INSERT OR REPLACE INTO written VALUES (0, ?)", (now_ms,))
        self._db.executemany(
            "INSERT INTO position VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset",
            [(topic, number, offset) for (topic, number), offset in positions.items()],
        )

    def labels_lost_before(self) -> int | None:
        """Up to which event time (ms) transactions may lack labels, because their records were deleted unread."""
        row = self._db.execute("SELECT before FROM labels_lost").fetchone()
        return None if row is None else int(row[0])

    def set_labels_lost_before(self, time: int) -> None:
        """Store that time in the transaction of the batch."""
        self._db.execute("INSERT OR REPLACE INTO labels_lost VALUES (0, ?)", (time,))

    def add(self, rows: Iterable[ScoredTransaction]) -> int:
        """Add scored transactions and return their number. Ignores a known event id, as the first score counts."""
        return self._db.executemany(
            "INSERT OR IGNORE INTO decided (event_id, event_time, context, decision, member_alerts, value,"
            " propensity, card_group, rule) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [row[:-1] for row in rows],
        ).rowcount

    def find(self, event_ids: Iterable[str]) -> dict[str, ScoredTransaction]:
        """The rows of those event ids that are stored."""
        rows = self._db.execute(
            "SELECT event_id, event_time, context, decision, member_alerts, value, propensity, card_group, rule,"
            " label, source, probability, rank, labelled_at, log_offset, log_partition"
            " FROM decided WHERE event_id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(event_ids)),),
        )
        label = _SCORED
        return {
            r[0]: ScoredTransaction._make([*r[:label], None if r[label] is None else LabelRecord(*r[label:])])
            for r in rows
        }

    def set_labels(self, labels: Mapping[str, LabelRecord]) -> None:
        """Replace the effective labels of known event ids."""
        self._db.executemany(
            "UPDATE decided SET label=?, source=?, probability=?, rank=?, labelled_at=?, log_offset=?, log_partition=?"
            " WHERE event_id=?",
            [(*label, event_id) for event_id, label in labels.items()],
        )

    def waiting(self, event_ids: Iterable[str]) -> dict[str, LabelRecord]:
        """Labels of those event ids that arrived before their score."""
        rows = self._db.execute(
            "SELECT event_id, label, source, probability, rank, labelled_at, log_offset, log_partition"
            " FROM waiting WHERE event_id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(event_ids)),),
        )
        return {r[0]: LabelRecord(*r[1:]) for r in rows}

    def wait(self, labels: Mapping[str, LabelRecord], now_ms: int) -> None:
        """Store labels until their score arrives; a label replaces a waiting one of the same event id.

        `now_ms` is wall-clock time.
        """
        self._db.executemany(
            "INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(event_id, *label, now_ms) for event_id, label in labels.items()],
        )

    def stop_waiting(self, event_ids: Iterable[str]) -> None:
        """Remove labels whose score has arrived."""
        self._db.executemany("DELETE FROM waiting WHERE event_id=?", [(e,) for e in event_ids])

    def waiting_count(self) -> int:
        """Number of labels without a score."""
        return int(self._db.execute("SELECT count(*) FROM waiting").fetchone()[0])

    def row_count(self) -> int:
        """Number of stored transactions."""
        return int(self._db.execute("SELECT count(*) FROM decided").fetchone()[0])

    def delete_rows(self, event_time: int, limit: int) -> int:
        """Delete at most `limit` rows before `event_time`; returns their number."""
        return self._db.execute(
            "DELETE FROM decided WHERE event_id IN (SELECT event_id FROM decided WHERE event_time < ? LIMIT ?)",
            (event_time, limit),
        ).rowcount

    def delete_waiting(self, labelled_at: int, since: int, limit: int) -> int:
        """Delete at most `limit` labels that were given before `labelled_at` and wait since before `since`.

        `since` is wall-clock time (epoch ms). Looks at every waiting label. Returns the number.
        """
        return self._db.execute(
            "DELETE FROM waiting WHERE event_id IN"
            " (SELECT event_id FROM waiting WHERE labelled_at < ? AND since < ? LIMIT ?)",
            (labelled_at, since, limit),
        ).rowcount

    def commit(self) -> None:
        """Commit the batch and begin the next one."""
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")

    def rollback(self) -> None:
        """Discard the current batch together with the contexts that it assigned."""
        self._db.execute("ROLLBACK")
        self._db.execute("BEGIN IMMEDIATE")
        self._contexts.clear()
        self._names.clear()
        for row in self._db.execute("SELECT id, ensemble, version, arm, policy_version FROM context"):
            self._register(Context(*row[1:]), row[0])

    def close(self) -> None:
        """Discard the current batch and close the file. Works after an error too, such as a full disk."""
        try:
            # Some errors end the transaction by themselves, and others make the roll-back fail.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            _log.warning("the joiner's store: the last batch is discarded at the next start: %s", error)
        finally:
            self._db.close()
