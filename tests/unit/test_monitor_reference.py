"""Which manifests of versions a monitor keeps in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.ensemble import registry
from stream_scorer.errors import AccessDenied
from stream_scorer.monitor.reference import KEPT_VERSIONS, RETRY_S, EnsembleReferences
from tests.support.ensembles import compose


def test_manifests_do_not_pile_up_with_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, loaded, refuses = tmp_path / "ens", [], False
    manifest = compose(folder)

    def resolve(reference: str, _uri: str | None, _cache: Path) -> tuple[Path, str]:
        if refuses:
            raise AccessDenied("MLflow denies access")
        loaded.append(reference)
        return folder, "local-1" if reference == str(folder) else reference.partition(":")[2]

    monkeypatch.setattr(registry, "resolve", resolve)
    clock = SystemClock()
    at = [0.0]
    monkeypatch.setattr(clock, "monotonic", lambda: at[0])
    references = EnsembleReferences("http://mlflow", tmp_path, clock, initial=str(folder))
    references.load_initial()
    for version in range(2 * KEPT_VERSIONS):
        assert references.members(manifest.name, str(version)) == manifest.member_names
        assert references.profile(manifest.name, "0") is not None  # in use, so it stays
    assert len(loaded) == 1 + 2 * KEPT_VERSIONS
    assert references.manifest(manifest.name, "local-1") is not None  # a folder's version cannot be loaded again
    assert references.manifest(manifest.name, "1") is not None
    assert len(loaded) == 2 + 2 * KEPT_VERSIONS
    refuses = True
    assert references.profile(manifest.name, "1000") is None
    refuses = False
    assert references.profile(manifest.name, "1000") is None
    at[0] += RETRY_S + 1
    assert references.profile(manifest.name, "1000") is not None
