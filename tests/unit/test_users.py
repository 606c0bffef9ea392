"""The user of this process."""

from __future__ import annotations

import getpass
import os

import pytest

from stream_scorer.users import current_user


def test_a_container_without_user_names_has_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 10001")

    assert current_user() == getpass.getuser()
    monkeypatch.setattr(getpass, "getuser", unknown)
    assert current_user() == f"uid {os.getuid()}"
