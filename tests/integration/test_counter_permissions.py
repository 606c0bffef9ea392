"""Which users of Redis can open counters."""

from __future__ import annotations

import re
import uuid

import pytest

from stream_scorer.errors import StateUnavailable
from stream_scorer.stack import StackAddresses
from stream_scorer.state import scripts
from stream_scorer.state.client import connect
from stream_scorer.state.counters import CounterStore


@pytest.mark.integration
def test_a_user_who_lacks_a_command_of_a_batch_does_not_open_the_counters(shared_stack: StackAddresses) -> None:
    admin, password = connect(str(shared_stack.redis)), uuid.uuid4().hex
    limited = connect(str(shared_stack.redis).replace("redis://", f"redis://limited:{password}@"))
    commands = set(re.findall(r"call\('([A-Z]+)'", scripts.load("apply_counters")))
    assert len(commands) > 4
    try:
        admin.acl_setuser("limited", enabled=True, passwords=[f"+{password}"], keys=["*"], categories=["+@all"])
        CounterStore(limited, "test", ttl_s=60).open("e1", {})
        for command in commands:
            admin.acl_setuser("limited", enabled=True, categories=["+@all"], commands=[f"-{command.lower()}"])
            with pytest.raises(StateUnavailable):
                CounterStore(limited, "test", ttl_s=60).open("e1", {})
    finally:
        admin.acl_deluser("limited")
        limited.close()
        admin.close()
