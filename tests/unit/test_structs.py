"""Structs are described by msgspec when their module is imported, because that is not safe in several threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What the threads of scorer and monitor decode. Then, describing a type raises an error.
NOT_DESCRIBED = """
import sys
import msgspec
import msgspec._utils
import stream_scorer.app, stream_scorer.kafka.oauth, stream_scorer.monitor.joiner

class New(msgspec.Struct):
    a: int

def describe(_):
    raise RuntimeError

msgspec._utils._get_class_mro_and_typevar_mappings = describe
for name, module in list(sys.modules.items()):
    for kind in list(vars(module).values()) if name.startswith(("stream_scorer.", "__main__")) else ():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == name:
            try:
                msgspec.json.Decoder(kind)
            except RuntimeError:
                print(name, kind.__name__)
"""
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


def test_structs_of_scorer_and_monitor_are_described_after_the_import() -> None:
    found = run(NOT_DESCRIBED)
    assert (found.returncode, found.stdout.splitlines()) == (0, ["__main__ New"]), found.stderr


@pytest.mark.parametrize("prepared", [True, False])
def test_prepared_structs_are_safe_in_several_threads(prepared: bool) -> None:
    ended = run(RACE, *(["prepare"] if prepared else []))
    if not prepared and ended.returncode == 0:
        pytest.skip("this msgspec did not crash")
    assert (ended.returncode == 0) == prepared, ended.stderr
