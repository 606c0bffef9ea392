"""Structs are described by msgspec when their module is imported, because that is not safe in several threads.

`test_fresh_scorer.py` checks that it is so for all structs of scorer and monitor.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

# Four threads decode new types at the same time; msgspec crashes within a few of them.
RACE = """
import sys, threading, types
import msgspec
from stream_scorer.structs import prepare

MODULE = '''
import msgspec
class Leaf(msgspec.Struct, frozen=True):
    a: int = 0
class Inner(msgspec.Struct, frozen=True):
    leaf: Leaf = Leaf()
class Outer(msgspec.Struct, frozen=True):
    inner: Inner = Inner()
    text: str = ""
'''
sys.setswitchinterval(1e-6)
for number in range(200):
    module = sys.modules[f"made{number}"] = types.ModuleType(f"made{number}")
    exec(MODULE, module.__dict__)
    if "prepare" in sys.argv:
        prepare(module.__dict__)
    start = threading.Barrier(4)
    def decode():
        start.wait()
        msgspec.json.decode(b'{"text": "t", "inner": {"leaf": {"a": 1}}}', type=module.Outer)
    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("prepared", [True, False])
def test_prepared_structs_are_safe_in_several_threads(prepared: bool) -> None:
    ended = run(RACE, *(["prepare"] if prepared else []))
    if not prepared and ended.returncode == 0:
        pytest.skip("this msgspec did not crash")
    assert (ended.returncode == 0) == prepared, ended.stderr
