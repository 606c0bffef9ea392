"""An empty MLflow database, kept and copied: to create it, MLflow runs 40 schema migrations, seconds of CPU time."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

# A database with rows in one of them is in use.
_USERS_TABLES = ("registered_models", "runs")


def keep_database(database: Path, kept: Path) -> None:
    """Copy a new SQLite `database` to `kept`, unless somebody uses it already, or it cannot be read or written."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=kept.parent) as temporary:
            copy = Path(temporary, kept.name)
            with closing(_read_only(database)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            if _is_empty(copy):
                os.replace(copy, kept)
    except (OSError, sqlite3.Error):  # the next start creates its own
        return


def copy_database(kept: Path, database: Path) -> bool:
    """Write the database in `kept` to `database`, which does not exist. False if there is none, or it is damaged."""
    try:
        if not kept.exists() or not _is_empty(kept):
            return False
        database.write_bytes(kept.read_bytes())
    except (OSError, sqlite3.Error):
        database.unlink(missing_ok=True)
        return False
    return True


def _read_only(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)


def _is_empty(database: Path) -> bool:
    with closing(_read_only(database)) as connection:
        whole = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
        # The tables are literals above.
        counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in _USERS_TABLES]  # noqa: S608
    return whole and counts == [(0,)] * len(_USERS_TABLES)
