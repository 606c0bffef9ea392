"""The proof audit, scaled down: on records in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import audit
from proofs.kit import Context
from stream_scorer.audit import parts


@pytest.mark.parametrize("broken", [False, True])
def test_an_archive_holds_and_each_alteration_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    monkeypatch.setattr(parts, "BLOCK_RECORDS", parts.BLOCK_RECORDS)
    result = audit.in_memory(Context(3, 8, broken, tmp_path, lambda _text: None))
    failed = [name for name, holds in result.checks.items() if not holds]
    if broken:
        assert "the whole archive holds" in failed
    else:
        assert failed == []
