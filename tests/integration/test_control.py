"""Commands by the command line, on a real broker and registry, with a scorer that follows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proofs.kit import SHARED_STACK, Scorer, services, train_cards, wait_until
from stream_scorer.cli.main import main
from stream_scorer.ensemble.registry import list_versions, register
from stream_scorer.stack import StackAddresses

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("mlflow")]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stack(
    tmp_path: Path, shared_services: dict[str, str], shared_mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StackAddresses]:
    monkeypatch.setenv(SHARED_STACK, json.dumps(shared_services | {"mlflow": shared_mlflow}))
    with services("kafka", "redis", "mlflow", partitions=2) as (_, addresses):
        train_cards(tmp_path, seed=1, transactions=30_000)
        register(tmp_path / "ensemble", "cards", str(addresses.mlflow), alias="champion")
        yield addresses


@pytest.fixture
def run(
    stack: StackAddresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """The command line, in this process: most of a command's time goes to imports."""
    monkeypatch.setenv("STREAM_SCORER_KAFKA_BOOTSTRAP", str(stack.kafka))
    monkeypatch.setenv("STREAM_SCORER_MLFLOW_URL", str(stack.mlflow))
    monkeypatch.setenv("STREAM_SCORER_CACHE_DIR", str(tmp_path / "cache"))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stream-scorer", "ensemble", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output = capfd.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return call


def test_a_version_comes_and_goes_by_commands(stack: StackAddresses, run: Run, tmp_path: Path) -> None:
    more = ["--mlflow", str(stack.mlflow), "--cache", str(tmp_path / "scorers-cache")]
    scorer = Scorer(tmp_path, stack, instance="one", ensemble="cards@champion", arguments=more)

    def status() -> dict[str, object]:
        code, out, _ = run("status", "--json")
        assert code == 0
        document: dict[str, object] = json.loads(out)
        return document

    def aliases() -> dict[str, list[str]]:
        return {entry.version: entry.aliases for entry in list_versions(str(stack.mlflow))}

    scorer.start()
    try:
        wait_until("the scorer serves", lambda: "applied" in run("hold", "cards", "--why", "start")[1], 60)
        assert aliases() == {"1": ["champion"]}
        code, out, _ = run("weights", "cards:1", "xgb=0.01", "--why", "xgb drifts")
        assert code == 0
        assert "one: applied; versions in play: 2, 1" in out  # on probation beside the one before
        assert aliases() == {"1": [], "2": ["champion"]}
        assert run("disable", "cards", "neural", "--why", "slow")[0] == 0
        code, _, err = run("disable", "cards", "nobody", "--why", "gone")
        assert (code, "no member 'nobody'" in err) == (2, True)
        for member in ("gbdt", "forest", "logistic"):
            code, _, err = run("disable", "cards", member, "--why", "too many")
            if code:
                break
        assert (code, "quorum" in err) == (2, True)
        code, out, _ = run("rollback", "cards", "--why", "alerts up")
        assert (code, "one: applied; versions in play: 1\n" in out) == (0, True)
        assert aliases() == {"1": ["champion"], "2": []}
        assert run("retire", "cards:2", "--why", "bad")[0] == 0
        code, _, err = run("promote", "cards:2", "--why", "again")
        assert (code, "2 is retired" in err) == (1, True)
        shown = status()
        assert [s["instance"] for s in shown["scorers"]] == ["one"]  # type: ignore[index, attr-defined]
        assert shown["log"][-1]["refused"] == "2 is retired"  # type: ignore[index]
        assert shown["states"][0]["champion"]["version"] == "1"  # type: ignore[index]
        assert run("promote", "cards:9", "--why", "none")[0] == 2
        assert run("canary", "cards:1", "--share", "0", "--why", "none")[0] == 2
        code, out, _ = run("status", "cards")
        assert (code, "REFUSED" in out, "xgb drifts" in out) == (0, True, True)
        assert scorer.stop() == 0
        assert status()["scorers"] == []
    finally:
        scorer.close()
