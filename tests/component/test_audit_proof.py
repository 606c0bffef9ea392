"""The proof audit, scaled down: on records in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import audit
from proofs.kit import Context


@pytest.mark.parametrize("broken", [False, True])
def test_an_archive_holds_and_each_alteration_is_found(tmp_path: Path, broken: bool) -> None:
    result = audit.in_memory(Context(3, 8, broken, tmp_path, lambda _text: None))
    failed = result.failed()
    if broken:
        assert "the whole archive holds" in failed
    else:
        assert failed == []
