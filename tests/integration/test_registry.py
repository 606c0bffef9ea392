"""Register and resolve ensembles on a real MLflow server."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from proofs.storm_proxy import Proxy
from stream_scorer.cli.main import cli
from stream_scorer.ensemble import registry
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import (
    Input,
    NoCalibrator,
    Platt,
    Thresholds,
    Training,
    manifest_digest,
    read_manifest,
)
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.ensemble.registry import (
    find_alias,
    find_registered,
    list_versions,
    register,
    resolve,
    resolve_manifest,
    set_alias,
)
from stream_scorer.errors import ArtifactError, RegistryUnavailable, SettingsError, UsageError
from stream_scorer.evaluation.result import Evaluation
from stream_scorer.spec import parse_spec
from tests.support.small_history import SPEC_TEXT, small_ensemble, write_history

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("mlflow")]


@pytest.fixture
def mlflow(shared_mlflow: str) -> str:
    return shared_mlflow


def make(directory: Path, name: str, bias: float = -1.0) -> Path:
    random = np.random.default_rng(1)
    model = encode_dense(Dense([Layer([[1.0], [-0.5]], [bias], "logistic")]))
    drafts = [Draft("only", "dense-json", model, ["a", "b"], [Input(impute=0.0)] * 2, NoCalibrator(), 1.0)]
    outline = Outline(
        name=name,
        created_at=1_700_000_000_000,
        spec_name="cards",
        spec_hash="a" * 64,
        feature_hash="b" * 64,
        features=["a", "b"],
        final_calibrator=Platt(1.0, 0.0),
        thresholds=Thresholds("p1", 0.3, 0.8),
        quorum=0.5,
        training=Training(0, 1, 2, 1, "run", "0" * 64, {"ensemble": {"average_precision": 0.75}}),
    )
    compose_ensemble(directory, outline, drafts, random.normal(size=(200, 2)))
    return directory


def test_what_was_registered_comes_back_bit_by_bit(
    mlflow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(tmp_path / "made", "bits")
    (made / "notes.txt").write_text("not part of the ensemble")
    version = register(made, "bits", mlflow, alias="champion", tags={"team": "cards"})
    for reference in ("bits@champion", f"bits:{version}"):
        path, resolved = resolve(reference, mlflow, tmp_path / "cache")
        assert resolved == version
        assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "only.json"]
        for file in path.iterdir():
            assert file.read_bytes() == (made / file.name).read_bytes()
        assert Ensemble.load(path, version=resolved).score(np.zeros((1, 2))).score[0] == pytest.approx(0.2689414213)
    entry = next(entry for entry in list_versions(mlflow) if entry.name == "bits")
    assert (entry.version, entry.aliases) == (version, ["champion"])
    # Standard output belongs to results: the client's own chatter must not get into somebody's JSON.
    assert capsys.readouterr().out == ""


def test_the_run_carries_metrics_and_parameters(mlflow: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    version = register(make(tmp_path / "made", "metrics"), "metrics", mlflow)
    client = MlflowClient(mlflow, mlflow)
    run = client.get_run(client.get_model_version("metrics", version).run_id)
    assert run.data.metrics == {"ensemble.average_precision": 0.75}
    assert (run.data.params["spec"], run.data.params["weight.only"]) == ("cards", "1.0")
    assert run.info.status == "FINISHED"


def test_an_evaluation_becomes_a_run(mlflow: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    (tmp_path / "spec.yaml").write_text(SPEC_TEXT)
    checked, (transactions, labels) = parse_spec(SPEC_TEXT), write_history(tmp_path / "history", 600)
    for version, members in (("1", {"one": 1}), ("2", {"one": 1, "two": 2})):
        small_ensemble(tmp_path, checked, version, members)
        assert register(tmp_path / version, "small", mlflow) == version
    arguments = ["evaluate", "small:2", "--ensemble", "small:1", "--spec", str(tmp_path / "spec.yaml"),
                 "--transactions", str(transactions), "--labels", str(labels), "--replicates", "20", "--json",
                 "--out", str(tmp_path / "out"), "--mlflow", mlflow, "--cache", str(tmp_path / "cache"),
                 "--experiment", "reviews"]  # fmt: skip
    results = []
    for _ in range(2):
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, (done.output, done.exception)
        results.append(msgspec.json.decode(done.stdout, type=Evaluation))
    result, client = results[0], MlflowClient(mlflow, mlflow)
    experiment = client.get_experiment_by_name("reviews")
    runs = client.search_runs([experiment.experiment_id], f"params.digest = '{result.digests.all}'")
    assert len(runs) == 2
    run = runs[-1]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "evaluate small 1, small 2"
    assert run.data.tags["stream_scorer.evaluation_sha256"] == result.digests.all
    assert run.data.params["digest.scores"] == result.digests.scores
    assert run.data.params["version.2"] == f"small 2, {result.versions[1].sha256}"
    assert run.data.params["input.labels"] == result.input["labels"]
    assert run.data.metrics["2.average_precision"] == result.versions[1].average_precision.value
    assert run.data.metrics["1.value_caught"] == result.versions[0].alerts.value_caught
    difference = result.candidates[0].differences["recall"]
    assert run.data.metrics["2.minus_champion.recall"] == difference.value
    assert run.data.metrics["2.minus_champion.recall.low"] == difference.low
    assert run.data.metrics["member.two.roc_auc"] == result.members[1].roc_auc
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert msgspec.json.decode((folder / "evaluation.json").read_bytes(), type=Evaluation).digests == result.digests
    assert "Effective challenge" in (folder / "evaluation.html").read_text()
    client.delete_experiment(experiment.experiment_id)
    refused = CliRunner().invoke(cli, arguments)
    assert isinstance(refused.exception, ArtifactError)
    assert "was deleted" in refused.exception.message


def test_an_alias_moves_and_the_cache_keeps_both(mlflow: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = register(make(tmp_path / "one", "moving"), "moving", mlflow, alias="champion")
    old, _ = resolve("moving@champion", mlflow, cache)
    second = register(make(tmp_path / "two", "moving", bias=0.5), "moving", mlflow, alias="champion")
    new, version = resolve("moving@champion", mlflow, cache)
    assert (int(first), int(second), version) == (1, 2, "2")
    assert new != old
    assert old.is_dir()
    assert [set_alias("moving", "champion", "1", mlflow) for _ in range(2)] == ["2", "1"]
    assert find_alias("moving", "champion", mlflow) == "1"
    assert find_alias("moving", "other", mlflow) is find_alias("nobody", "champion", mlflow) is None
    # `train` and `register` leave the alias at the version that serves.
    arguments = ["ensemble", "register", str(tmp_path / "two"), "moving", "--why", "new", "--mlflow", mlflow]
    refused = CliRunner().invoke(cli, [*arguments, "--alias", "champion"])
    assert "it names 1" in str(refused.exception)


def test_a_registered_manifest_is_found_again(mlflow: str, tmp_path: Path) -> None:
    made = [make(tmp_path / str(bias), "again", bias) for bias in (0.1, 0.2)]
    digests = [manifest_digest(read_manifest(folder)) for folder in made]
    assert find_registered("again", digests[0], mlflow) is None
    versions = [register(made[0], "again", mlflow) for _ in range(2)]
    assert find_registered("again", digests[0], mlflow) == versions[-1] == "2"
    assert find_registered("again", digests[1], mlflow) is None


def test_models_of_other_people_are_not_in_the_way(
    mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow, mlflow)
    client.create_registered_model("Rob's model")
    client.create_model_version("Rob's model", source="s3://other/model", await_creation_for=0)
    for bias in (0.1, 0.2, 0.3):
        register(make(tmp_path / str(bias), "shared", bias), "shared", mlflow, alias="champion")
    # The registry answers in pages.
    monkeypatch.setattr(registry, "_PAGE", 2)
    found = [(entry.version, entry.aliases) for entry in list_versions(mlflow) if entry.name == "shared"]
    assert found == [("3", ["champion"]), ("2", []), ("1", [])]
    assert {entry.name for entry in list_versions(mlflow, "shared")} == {"shared"}
    done = CliRunner().invoke(cli, ["doctor", "--json", "--mlflow", mlflow, "--ensemble", "shared@champion"])
    assert "answers, 3 versions of shared" in done.stdout


def test_a_monitor_fetches_the_manifest_and_no_member(mlflow: str, tmp_path: Path) -> None:
    port = urlsplit(mlflow).port
    assert port
    proxy = Proxy(port)
    address, cache = f"http://127.0.0.1:{proxy.port}", tmp_path / "cache"
    made = make(tmp_path / "made", "described")
    version = register(made, "described", address, alias="champion")
    expected = read_manifest(made), version
    assert resolve_manifest("described@champion", address, cache) == expected
    assert [path.name for path in cache.glob("*/*") if path.parent.name != "resolved"] == [manifest_digest(expected[0])]
    proxy.close()
    assert resolve_manifest("described@champion", address, cache) == expected
    # The members are not there, so nothing can be loaded.
    with pytest.raises(RegistryUnavailable):
        resolve("described@champion", address, cache)


def test_mistakes_are_named_with_what_there_is(mlflow: str, tmp_path: Path) -> None:
    register(make(tmp_path / "made", "known"), "known", mlflow, alias="champion")
    with pytest.raises(ArtifactError, match="no ensemble with the name 'other'"):
        resolve("other@champion", mlflow, tmp_path / "cache")
    with pytest.raises(ArtifactError, match="no alias 'challenger'") as caught:
        resolve("known@challenger", mlflow, tmp_path / "cache")
    assert "known@champion" in str(caught.value)
    with pytest.raises(ArtifactError, match="no version 9"):
        resolve("known:9", mlflow, tmp_path / "cache")


def test_a_damaged_cache_is_fetched_again(mlflow: str, tmp_path: Path) -> None:
    register(make(tmp_path / "made", "damaged"), "damaged", mlflow, alias="champion")
    path, _ = resolve("damaged@champion", mlflow, tmp_path / "cache")
    whole = (path / "only.json").read_bytes()
    (path / "only.json").chmod(0o644)
    (path / "only.json").write_bytes(whole.replace(b"-0.5", b"-0.6"))
    again, _ = resolve("damaged@champion", mlflow, tmp_path / "cache")
    assert (again / "only.json").read_bytes() == whole
    Ensemble.load(again, version="1")


def test_a_scorer_starts_from_the_cache_when_the_registry_is_gone(
    mlflow: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, port = tmp_path / "cache", urlsplit(mlflow).port
    assert port
    proxy = Proxy(port)
    address = f"http://127.0.0.1:{proxy.port}"
    version = register(make(tmp_path / "made", "offline"), "offline", address, alias="champion")
    resolve("offline@champion", address, cache)
    proxy.close()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        path, resolved = resolve("offline@champion", address, cache)
    assert time.monotonic() - started < 10
    assert resolved == version
    assert "does not answer" in caplog.text
    assert "from the cache" in caplog.text
    Ensemble.load(path, version=resolved)
    with pytest.raises(RegistryUnavailable, match="does not answer"):
        resolve("offline@challenger", address, cache)
    with pytest.raises(RegistryUnavailable):
        register(tmp_path / "made", "offline", address)
    damaged = path / "only.json"
    damaged.chmod(0o644)
    damaged.write_bytes(b"{}")
    with pytest.raises(RegistryUnavailable):
        resolve("offline@champion", address, cache)


def test_a_folder_never_imports_mlflow(tmp_path: Path) -> None:
    import subprocess

    make(tmp_path / "made", "cards")
    code = (
        "import sys; from pathlib import Path; from stream_scorer.ensemble.registry import resolve;"
        "from stream_scorer.ensemble.ensemble import Ensemble;"
        f"path, version = resolve({str(tmp_path / 'made')!r}, None, Path('unused'));"
        "Ensemble.load(path, version=version);"
        "assert version.startswith('local-'); assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("kind", ["mlflow", "requests"])
def test_no_error_of_the_registry_repeats_a_password(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests
    from mlflow.exceptions import MlflowException

    address = "http://ann:s3cret%21@registry.example:5000"
    raised = {"mlflow": MlflowException, "requests": requests.ConnectionError}[kind]
    monkeypatch.setattr(registry, "_check_reachable", lambda _: None)
    with pytest.raises(RegistryUnavailable) as caught, registry.connected(address):
        raise raised(f"API request to {address}/api/2.0/mlflow failed, see {address}")
    assert "registry.example:5000/api" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "ann" not in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "kind", "hint"),
    [
        (ModuleNotFoundError("No module named 'botocore'", name="botocore"), SettingsError, "--serve-artifacts"),
        (PermissionError(13, "Permission denied", "/mlruns"), ArtifactError, "--serve-artifacts"),
        (OSError(28, "No space left on device"), ArtifactError, "Check the disk"),
    ],
)
def test_a_store_of_files_that_cannot_be_used_is_an_error_and_not_a_traceback(
    raised: Exception, kind: type[UsageError], hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_check_reachable", lambda _: None)
    address = "http://registry.example:5000"
    with pytest.raises(kind, match=f"MLflow at {address}") as caught, registry.connected(address):
        raise raised
    assert hint in caught.value.hint
