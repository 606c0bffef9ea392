"""An empty database of MLflow is kept and copied; one that is in use or damaged is not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from stream_scorer.stack.mlflow_storage import copy_database, keep_database


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mlflow" / "mlflow.db"
    path.parent.mkdir()
    run(path, "CREATE TABLE runs (id TEXT)", "CREATE TABLE registered_models (name TEXT)")
    run(path, "CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('abc')")
    return path


def run(path: Path, *statements: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        rows = [row for statement in statements for row in connection.execute(statement).fetchall()]
        connection.commit()
    return rows


def test_a_new_database_is_kept_and_copied(database: Path, tmp_path: Path) -> None:
    kept, copy = tmp_path / "cache" / "kept.db", tmp_path / "copy.db"
    assert not copy_database(kept, copy)
    keep_database(database, kept)
    run(database, "INSERT INTO runs VALUES ('one')")
    assert copy_database(kept, copy)
    assert run(copy, "SELECT * FROM alembic_version", "SELECT * FROM runs") == [("abc",)]
    assert [path.name for path in kept.parent.iterdir()] == ["kept.db"]


@pytest.mark.parametrize("table", ["runs", "registered_models"])
def test_a_database_in_use_is_neither_kept_nor_copied(database: Path, tmp_path: Path, table: str) -> None:
    run(database, f"INSERT INTO {table} VALUES ('one')")
    keep_database(database, tmp_path / "kept.db")
    assert not (tmp_path / "kept.db").exists()
    assert not copy_database(database, tmp_path / "copy.db")


def test_a_damaged_database_is_not_copied(database: Path, tmp_path: Path) -> None:
    kept, copy = tmp_path / "kept.db", tmp_path / "copy.db"
    keep_database(database, kept)
    content = kept.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"x" * len(content)):
        kept.write_bytes(damaged)
        assert not copy_database(kept, copy)
        assert not copy.exists()
    keep_database(tmp_path / "absent.db", tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists()
