"""What is shipped for Docker and Kubernetes agrees with the code; nothing here needs a network."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

from stream_scorer.cli.main import cli
from stream_scorer.settings import CATALOGUE, load_settings
from stream_scorer.spec import load_spec
from stream_scorer.spec.gate_rules import check_names, load_rules

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
KUBERNETES = "1.34"
# Images: files in requirements/.
ROLES = ("scorer", "monitor", "replay", "train")
VARIABLES = {setting.variable for setting in CATALOGUE}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def manifest(name: str, kind: str | None = None) -> Any:
    """The first document of a file, or its only one of a kind."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text(encoding="utf-8"))
    return next(document for document in documents if kind in (None, document["kind"]))


# The pods of each role: the file and the kind of its workload, and the file of its ConfigMap.
WORKLOADS = {
    "scorer": ("scorer.yaml", "StatefulSet", "configmap.yaml"),
    "monitor": ("monitor.yaml", "StatefulSet", "configmap.yaml"),
    "operator": ("operator/operator.yaml", "Pod", "operator/operator.yaml"),
}


def pod_of(role: str) -> Any:
    file, kind, _ = WORKLOADS[role]
    workload = manifest(file, kind)
    return workload["spec"] if kind == "Pod" else workload["spec"]["template"]["spec"]


def settings_of(role: str, *, examples: bool) -> dict[str, str]:
    """The data of the role's ConfigMap, with the lines of its commented examples or without."""
    text = (DEPLOY / "kubernetes" / WORKLOADS[role][2]).read_text(encoding="utf-8")
    text = re.sub(r"^  # (?=STREAM_SCORER_)", "  ", text, flags=re.M) if examples else text
    (found,) = [
        d["data"]
        for d in yaml.safe_load_all(text)
        if d["kind"] == "ConfigMap" and d["metadata"]["name"] == f"stream-scorer-{role}"
    ]
    return dict(found)


@pytest.fixture
def pod() -> Any:
    return manifest("scorer.yaml")["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    (only,) = pod["containers"]
    return only


# ---- Kubernetes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_meets_the_schema(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_schema_check_can_fail() -> None:
    broken = manifest("scorer.yaml")
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("role", WORKLOADS)
def test_every_variable_of_a_role_is_a_setting_and_every_value_parses(role: str, tmp_path: Path) -> None:
    pod = pod_of(role)
    (only,) = pod["containers"]
    assert only["envFrom"] == [{"configMapRef": {"name": f"stream-scorer-{role}"}}]
    data, named = settings_of(role, examples=True), {entry["name"]: entry.get("value") for entry in only["env"]}
    assert not named.keys() & data.keys()
    known = {
        name.removesuffix("_FILE") for name in {*named, *data} if not name.startswith("STREAM_SCORER_KAFKA_CLIENT_")
    }
    assert known <= VARIABLES
    # Every file of the Secret that is named has a value; a property of Kafka is one that clients know.
    mount = next(m["mountPath"] for m in only["volumeMounts"] if m["name"] == "secrets")
    files = {name: value for name, value in (data | named).items() if value and value.startswith(mount + "/")}
    assert {name for name in {*data, *named} if name.endswith("_FILE")} <= files.keys()
    contents = {"redis-url": "redis://redis:6379/0", "mlflow-url": "http://mlflow:5000"}
    for name in {Path(value).name for value in files.values()}:
        (tmp_path / name).write_text(contents.get(name, "x" * 32))
    moved = {name: value.replace(mount, str(tmp_path)) for name, value in (data | named).items() if value}
    settings = load_settings({}, environment=moved, directory=tmp_path)
    assert {name: settings.properties[name].value for name in ("sasl.username", "sasl.password")} == {
        "sasl.username": role,
        "sasl.password": "x" * 32,
    }
    assert (
        role == "operator"
        or load_settings({}, environment=settings_of(role, examples=False))["metrics.host"] == "0.0.0.0"
    )


@pytest.mark.parametrize("role", WORKLOADS)
def test_addresses_come_from_files_of_the_secret_of_the_role(role: str) -> None:
    pod = pod_of(role)
    (only,) = pod["containers"]
    needed = ("KAFKA_BOOTSTRAP", "MLFLOW_URL") if role == "operator" else ("KAFKA_BOOTSTRAP", "MLFLOW_URL", "REDIS_URL")
    named = {entry["name"] for entry in only["env"]}
    assert {f"STREAM_SCORER_{name}_FILE" for name in needed} == {name for name in named if name.endswith("_FILE")}
    (secret,) = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    assert secret == f"stream-scorer-{role}"
    file, kind, _ = WORKLOADS[role]
    claims = manifest(file, kind)["spec"].get("volumeClaimTemplates", [])
    volumes = {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    assert volumes == {mount["name"] for mount in only["volumeMounts"]}
    documents = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    assert not any(document["kind"] == "Secret" for document in documents)


def test_scorers_restart_only_when_a_person_restarts_them_and_keep_their_cache() -> None:
    spec = manifest("scorer.yaml")["spec"]
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 60
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    (claim,) = spec["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == "/var/cache/stream-scorer"


def test_instances_have_stable_names(container: Any) -> None:
    assert manifest("scorer.yaml")["kind"] == "StatefulSet"
    instance = next(e for e in container["env"] if e["name"] == "STREAM_SCORER_SCORER_INSTANCE")
    assert instance["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


@pytest.mark.parametrize("role", WORKLOADS)
def test_a_pod_has_no_more_rights_than_it_needs(role: str) -> None:
    pod = pod_of(role)
    (only,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False


def test_probes_and_service_meet_the_port_of_the_settings(container: Any) -> None:
    (port,) = container["ports"]
    assert str(port["containerPort"]) == manifest("configmap.yaml")["data"]["STREAM_SCORER_METRICS_PORT"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    (service_port,) = manifest("service.yaml")["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]


def test_network_policies_let_prometheus_reach_the_metrics_and_grafana_reach_prometheus() -> None:
    folder = DEPLOY / "kubernetes" / "observability"
    allowed = {}
    for policy in yaml.safe_load_all((folder / "networkpolicy.yaml").read_text(encoding="utf-8")):
        spec = policy["spec"]
        (rule,) = spec["ingress"]
        (source,), (port,) = rule["from"], rule["ports"]
        selector = spec["podSelector"]
        names = (
            selector["matchLabels"].values() if "matchLabels" in selector else selector["matchExpressions"][0]["values"]
        )
        for name in names:
            allowed[name] = (*source["podSelector"]["matchLabels"].values(), port["port"])
    assert allowed == {
        "stream-scorer": ("stream-scorer-prometheus", 9464),
        "stream-scorer-monitor": ("stream-scorer-prometheus", 9464),
        "stream-scorer-prometheus": ("stream-scorer-grafana", 9090),
    }
    labels = {
        document["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]: document
        for path in MANIFESTS
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if "template" in document.get("spec", {})
    }
    assert allowed.keys() | {"stream-scorer-grafana"} == labels.keys()


def test_every_selector_finds_the_pods() -> None:
    labels = manifest("scorer.yaml")["spec"]["template"]["metadata"]["labels"]
    for name in ("scorer.yaml", "pdb.yaml"):
        assert manifest(name)["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service.yaml")["spec"]["selector"] == labels
    assert manifest("scorer.yaml")["spec"]["serviceName"] == manifest("service.yaml")["metadata"]["name"]


def test_the_monitor_is_one_process_with_a_state_of_its_own() -> None:
    monitor, scorer = manifest("monitor.yaml"), manifest("scorer.yaml")
    pod, other = monitor["spec"]["template"]["spec"], scorer["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (monitor["kind"], monitor["spec"]["replicas"], container["args"]) == ("StatefulSet", 1, ["monitor"])
    assert pod["securityContext"] == other["securityContext"]
    own = {entry["name"]: entry.get("value") for entry in container["env"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (claim,) = monitor["spec"]["volumeClaimTemplates"]
    assert own["STREAM_SCORER_MONITOR_STATE_DIR"] == mounts[claim["metadata"]["name"]]
    labels = monitor["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"] == labels != scorer["spec"]["template"]["metadata"]["labels"]


# ---- Docker


def test_the_image_is_locked_unprivileged_and_holds_no_secret(container: Any) -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", text).splitlines()
    for line in lines:
        if "pip install" in line and "-r " in line:
            assert "--require-hashes" in line
        elif "pip install" in line:
            assert "--no-deps" in line and "--no-index" in line
    stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    user = next(line for line in stage if line.startswith("USER")).split()[1]
    assert int(user.partition(":")[0]) > 0
    assert any(line.startswith("HEALTHCHECK") and "/healthz" in line for line in stage)
    # An argument of the build is visible in the image's history.
    assert [line for line in lines if line.startswith("ARG")] == ["ARG ROLE=scorer"]
    for role in ROLES:
        assert f"requirements/{role}.txt" in text
    # The scorer must not be process 1, which the watchdog could not kill.
    assert 'ENTRYPOINT ["tini", "--", "stream-scorer"]' in stage
    assert any("apt-get install" in line and " tini " in line for line in stage)
    variables = set(re.findall(r"STREAM_SCORER_[A-Z_]+[A-Z]", "\n".join(x for x in lines if not x.startswith("#"))))
    assert variables <= VARIABLES
    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    for name in ("NUMBA_CACHE_DIR", "STREAM_SCORER_CACHE_DIR", "HOME"):
        found = re.search(rf"\b{name}=(\S+)", text)
        assert found and any(found[1].startswith(mount) for mount in mounts), name


def test_what_the_image_copies_is_let_through() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for word in line.split()[:-1]]
    assert "*" in ignored
    assert set(copied) == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def test_every_action_of_ci_is_pinned_by_digest() -> None:
    for path in (ROOT / ".github" / "workflows").iterdir():
        used = re.findall(r"uses: *(\S+) *(.*)", path.read_text(encoding="utf-8"))
        assert used
        for action, comment in used:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r"# v\d+\.\d+\.\d+", comment), f"{action} has no comment with its version"


def test_compose_binds_loopback_only() -> None:
    services = load(ROOT / "docker-compose.yml")["services"]
    assert {"kafka", "redis", "mlflow", "prometheus", "grafana"} <= set(services)
    for name, service in services.items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if service.get("network_mode") == "host":
            addresses = [word for word in service.get("command", []) if "listen-address" in word]
            addresses += [f"={v}:" for k, v in service.get("environment", {}).items() if k == "GF_SERVER_HTTP_ADDR"]
            assert addresses and all("=127.0.0.1:" in word for word in addresses), name
    assert "./deploy/prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]


# ---- Files made from others


def test_what_is_made_from_the_code_is_as_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_reference.py"), "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_the_check_of_made_files_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = importlib.util.spec_from_file_location("make_reference", ROOT / "tools" / "make_reference.py")
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    for folder in ("docs", "deploy", "requirements"):
        (tmp_path / folder).mkdir()
    locks = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    (tmp_path / "requirements" / "dev.txt").write_text(locks)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert module.main([]) == 0
    assert module.main(["--check"]) == 0
    (tmp_path / "docs" / "metrics.md").write_text("old")
    assert module.main(["--check"]) == 3


def test_the_build_requirements_are_those_of_the_development_lock() -> None:
    locked = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    made = (DEPLOY / "build.txt").read_text(encoding="utf-8").splitlines()
    assert all(line in locked for line in made if line and not line.startswith("#"))
    pinned = {line.partition("==")[0] for line in made}
    needed = {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requires("hatchling") or [] if ";" not in text}
    assert needed | {"hatchling"} <= pinned


# ---- CI

CI = DEPLOY / "ci"
PIPELINES = {"github-actions.yml": "vendor.github-workflows", "gitlab-ci.yml": "vendor.gitlab-ci"}


def check_pipeline(path: Path, schema: str) -> int:
    """The exit code of check-jsonschema with one of the schemas that it contains."""
    return CliRunner().invoke(check_jsonschema, ["--builtin-schema", schema, str(path)]).exit_code


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_meets_the_schema_of_its_product(name: str, tmp_path: Path) -> None:
    assert check_pipeline(CI / name, PIPELINES[name]) == 0
    broken = tmp_path / name
    broken.write_text((CI / name).read_text(encoding="utf-8").replace("timeout", "timeot"), encoding="utf-8")
    assert check_pipeline(broken, PIPELINES[name]) == 1


@pytest.mark.parametrize("name", [*PIPELINES, "Jenkinsfile"])
def test_every_command_of_a_pipeline_can_be_parsed(name: str) -> None:
    text = re.sub(r" (?:\\\n)? +(?=--(?:who|why))", " ", (CI / name).read_text(encoding="utf-8"))
    text = re.sub(r"\n +(?=--who)", " ", text)
    commands = [shlex.split(found) for found in re.findall(r"stream-scorer ((?:gate|ensemble) [^\n>']*)", text)]
    context = click.Context(cli)
    parsed = []
    for command in commands:
        found = cli.get_command(context, command.pop(0))
        while isinstance(found, click.Group):
            found = found.get_command(context, command.pop(0))
        assert found is not None
        found.make_context(found.name, command).close()
        parsed.append(found.name)
    assert parsed == ["gate", "promote"]


def test_the_job_that_checks_on_github_has_no_credentials_of_an_operator() -> None:
    workflow = load(CI / "github-actions.yml")
    jobs = workflow.pop("jobs")
    assert "secrets" not in json.dumps(workflow, default=str), "every job would have them"
    assert {name: job["environment"] for name, job in jobs.items()} == {"gate": "gate", "promote": "production"}
    for job in jobs.values():
        with_secrets = [step for step in job["steps"] if "secrets." in json.dumps(step)]
        assert [step["run"].split()[0] for step in with_secrets] == ["stream-scorer"]
        assert "secrets." not in json.dumps(job | {"steps": []})


def test_the_job_that_checks_on_gitlab_has_no_credentials_of_an_operator() -> None:
    pipeline = load(CI / "gitlab-ci.yml")
    environments = {name: pipeline[name]["environment"] for name in ("gate", "promote")}
    assert environments == {"gate": {"name": "gate", "action": "verify"}, "promote": "production"}
    for name in environments:
        (rule,) = pipeline[name]["rules"]
        assert rule["if"] == '$CANDIDATE && $CI_COMMIT_REF_PROTECTED == "true"'
    assert pipeline["promote"]["rules"][0]["when"] == "manual"


def test_the_stage_that_checks_on_jenkins_has_no_credentials_of_an_operator() -> None:
    head, _, gate, promote = re.split(r"stage\('\w+'\)", (CI / "Jenkinsfile").read_text(encoding="utf-8"))
    ids = [set(re.findall(r"credentialsId: '([\w-]+)'", part)) for part in (head, gate, promote)]
    assert ids[0] == set() and "credentials(" not in head
    assert "kafka-trainer" in ids[1] and "kafka-operator" in ids[2]
    assert not any("operator" in name for name in ids[1])
    assert re.search(r"^ +submitter '[\w,-]+'$", promote, re.M), "anyone who may build could approve"


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("github-actions.yml", "dispatched by $GITHUB_ACTOR"),
        ("gitlab-ci.yml", "started by $GITLAB_USER_LOGIN"),
        ("Jenkinsfile", "approved by $APPROVER"),
    ],
)
def test_the_author_of_a_promotion_is_named_by_what_the_person_did(name: str, who: str) -> None:
    assert re.findall(r'--who "([^"]+)"', (CI / name).read_text(encoding="utf-8")) == [who]


def test_the_rules_file_for_pipelines_fits_the_spec_of_the_simulator() -> None:
    spec = load_spec(ROOT / "stream_scorer" / "simulate" / "cards.yaml")
    check_names(load_rules(CI / "gate.yaml"), spec)
