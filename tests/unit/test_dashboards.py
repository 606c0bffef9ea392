"""Alert rules, recording rules and dashboards use metrics and labels that the catalogues define."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_scorer.control.watch import WATCH_METRICS
from stream_scorer.incidents.signals import INCIDENT_METRICS
from stream_scorer.incidents.webhook import PAGE_KINDS, WEBHOOK_METRICS
from stream_scorer.monitor.metrics import MONITOR_METRICS
from stream_scorer.observability.metrics import PROCESS_METRICS, SCORER_METRICS
from stream_scorer.settings import load_settings
from tests.support.promql import labels_of_result, names, problems, series

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
MONITORING = MONITOR_METRICS + WATCH_METRICS + INCIDENT_METRICS + WEBHOOK_METRICS
CATALOGUE = SCORER_METRICS + MONITORING + PROCESS_METRICS
COLUMNS = 24


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(file: str) -> list[dict[str, Any]]:
    return [rule for group in load(PROMETHEUS / file)["groups"] for rule in group["rules"]]


ALERTS, RECORDED = rules("alerts.yml"), rules("recording.yml")


def known_series() -> dict[str, set[str]]:
    """All series: those of the catalogues, then the recording rules in their order."""
    out = series(CATALOGUE)
    for rule in RECORDED:
        out[rule["record"]] = labels_of_result(rule["expr"], out) - (
            {"le"} if "histogram_quantile" in rule["expr"] else set()
        )
    return out


KNOWN = known_series()
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (GRAFANA / "dashboards").glob("*.json")
}


def panels() -> Iterator[Any]:
    for name, dashboard in sorted(DASHBOARDS.items()):
        for panel in dashboard["panels"]:
            if panel["type"] != "row":
                yield pytest.param(panel, id=f"{name}-{panel['title'].replace(' ', '-')}")


# ---- The check itself


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ('sum by (decision) (rate(stream_scorer_transactions_total{job="x"}[5m]))', None),
        ("sum(rate(stream_scorer_transaktions_total[5m]))", "no metric stream_scorer_transaktions_total"),
        ('stream_scorer_transactions_total{reason="x"}', "no label reason"),
        ("sum by (reason) (rate(stream_scorer_transactions_total[5m]))", "the label reason"),
        ("histogram_quantile(0.5, sum by (le) (rate(stream_scorer_end_to_end_seconds_bucket[5m])))", None),
        ("sum by (le) (rate(stream_scorer_end_to_end_seconds_count[5m]))", "the label le"),
        ("rate(stream_scorer_end_to_end_seconds[5m])", "no metric stream_scorer_end_to_end_seconds"),
        ("stream_scorer_lag_records > 1e5 and on (instance) up == 1 or time() - 90 * 86400 > 1", None),
        ("time() > 1", "names no metric"),
    ],
)
def test_a_wrong_metric_or_label_is_found(expression: str, problem: str | None) -> None:
    found = problems(expression, KNOWN)
    assert (problem is None and not found) or (problem is not None and any(problem in each for each in found))


def test_a_renamed_metric_breaks_the_check() -> None:
    used = {name for rule in ALERTS for name in names(rule["expr"]).metrics}
    for metric in CATALOGUE:
        if metric.name in used:
            without = {name: labels for name, labels in KNOWN.items() if name != metric.name}
            assert any(problems(rule["expr"], without) for rule in ALERTS)


# ---- Rules


@pytest.mark.parametrize("rule", RECORDED, ids=lambda rule: rule["record"])
def test_a_recording_rule_uses_series_and_labels_there_are(rule: dict[str, Any]) -> None:
    earlier = {name: labels for name, labels in KNOWN.items() if name != rule["record"]}
    assert problems(rule["expr"], earlier) == []
    level, metric, operation = rule["record"].split(":")
    assert set(level.split("_")) <= names(rule["expr"]).grouped | names(rule["expr"]).metrics | KNOWN[rule["record"]]
    base = {re.sub(r"_(total|bucket|sum|count)$", "", each.split(":")[1] if ":" in each else each) for each in KNOWN}
    assert operation and any(metric.startswith(each) for each in base)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_rule_uses_series_and_labels_there_are(rule: dict[str, Any]) -> None:
    assert problems(rule["expr"], KNOWN) == []
    shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert shown <= labels_of_result(rule["expr"], KNOWN)
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert rule.get("for") or "[1h]" in rule["expr"], "one sample would raise the alert"


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_stays_silent() -> None:
    tests = [test for path in (ROOT / "tests" / "prometheus").glob("*_test.yml") for test in load(path)["tests"]]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    fire = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert fire == {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fire == {rule["alert"] for rule in ALERTS}


def test_every_recorded_series_is_used() -> None:
    asked = [rule["expr"] for rule in (*ALERTS, *RECORDED)]
    asked += [target["expr"] for panel in all_panels() for target in panel["targets"]]
    used = set().union(*(names(expression).metrics for expression in asked))
    assert {rule["record"] for rule in RECORDED} <= used


def all_panels() -> list[Any]:
    return [panel for each in DASHBOARDS.values() for panel in each["panels"] if panel["type"] != "row"]


def test_counters_are_asked_for_their_rate() -> None:
    counters = {metric.name for metric in CATALOGUE if metric.kind == "counter"}
    expressions = [rule["expr"] for rule in (*ALERTS, *RECORDED)]
    expressions += [target["expr"] for panel in all_panels() for target in panel["targets"]]
    for expression in expressions:
        for name in counters & names(expression).metrics:
            assert re.search(rf"\b(rate|increase)\({name}\b", expression), expression


def test_prometheus_reads_the_rules_and_the_default_port(tmp_path: Path) -> None:
    config = load(PROMETHEUS / "prometheus.yml")
    assert config["rule_files"] == ["recording.yml", "alerts.yml"]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    settings = load_settings({}, environment={}, directory=tmp_path)
    assert jobs["scorer"] == [f"{settings['metrics.host']}:{settings['metrics.port']}"]
    for rule in ALERTS:
        for found in re.findall(r'job=~?"([\w|]+)"', rule["expr"]):
            assert set(found.split("|")) <= jobs.keys()


def test_alerts_on_metrics_that_every_process_has_select_the_jobs() -> None:
    """A Prometheus that several teams share has `up` and `process_*` of all of them."""
    for rule in ALERTS:
        asked = {name for name in names(rule["expr"]).metrics if not re.match(r"stream_scorer_|\w+:", name)}
        assert not asked or re.search(r'job=~?"', rule["expr"]), rule["alert"]


def test_alerts_on_incidents_have_the_severities_of_the_webhook() -> None:
    (urgent, page), (other, ticket) = (
        (re.search(r'kind[=!]~"([\w|]+)"', rule["expr"]), rule["labels"]["severity"])
        for rule in ALERTS
        if "stream_scorer_open_incidents" in names(rule["expr"]).metrics
    )
    assert (page, ticket) == ("page", "ticket")
    assert urgent and other and "=~" in urgent[0] and "!~" in other[0]
    assert set(urgent[1].split("|")) == set(other[1].split("|")) == set(PAGE_KINDS) - {"verdict"}


# ---- Dashboards


@pytest.mark.parametrize("panel", list(panels()))
def test_a_panel_uses_series_and_labels_there_are(panel: Any) -> None:
    assert panel["description"].endswith(".") and panel["targets"]
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "5m")
        assert problems(expression, KNOWN) == []
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= labels_of_result(expression, KNOWN)
        distinguishing = names(expression).kept - {"le"}
        assert distinguishing <= shown or panel["type"] == "table", "series of one panel would have the same legend"


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_panels_of_a_dashboard_have_their_own_id_and_place(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"stream-scorer-{name}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids) > 1
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= COLUMNS for place in places)
    for one, other in itertools.combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_the_variables_of_a_dashboard_are_defined_and_used(name: str) -> None:
    dashboard = DASHBOARDS[name]
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", []))
    variables = {each["name"]: each["query"] for each in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$(?!__)(\w+)", asked)) == set(variables)
    for query in variables.values():
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert found and found[2] in KNOWN[found[1]]


def test_dashboards_use_the_provisioned_data_source_and_are_provisioned() -> None:
    (source,) = load(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    for panel in all_panels():
        assert panel["datasource"] == wanted and all(target["datasource"] == wanted for target in panel["targets"])
    (provider,) = load(GRAFANA / "provisioning" / "dashboards" / "stream-scorer.yml")["providers"]
    grafana = load(ROOT / "docker-compose.yml")["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"] if volume.startswith("./"))
    assert mounts == {
        "./deploy/grafana/dashboards": provider["options"]["path"],
        "./deploy/grafana/provisioning": "/etc/grafana/provisioning",
    }
    assert source["url"].removeprefix("$") in grafana["environment"]


def test_kubernetes_mounts_the_rules_and_dashboards_that_its_instructions_put_into_config_maps() -> None:
    folder = ROOT / "deploy" / "kubernetes" / "observability"
    made = {
        name: re.findall(r"--from-file=(?:[\w-]+=)?(\S+)", files)
        for name, files in re.findall(
            r"kubectl create (?:configmap|secret generic) (\S+) (.+)", (ROOT / "deploy" / "README.md").read_text()
        )
    }
    settings, prometheus, _ = yaml.safe_load_all((folder / "prometheus.yaml").read_text(encoding="utf-8"))
    config = yaml.safe_load(settings["data"]["prometheus.yml"])
    assert config["rule_files"] == [f"/etc/prometheus-rules/{Path(path).name}" for path in made["stream-scorer-rules"]]
    ours = load(PROMETHEUS / "prometheus.yml")
    assert [job["job_name"] for job in config["scrape_configs"]] == [job["job_name"] for job in ours["scrape_configs"]]
    services = {
        document["metadata"]["name"]: document["spec"]["ports"][0]["port"]
        for path in folder.parent.rglob("*.yaml")
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if document["kind"] == "Service"
    }
    for job in config["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        assert all(services[name] == found["port"] for name in found["names"])
    grafana = next(yaml.safe_load_all((folder / "grafana.yaml").read_text(encoding="utf-8")))
    pods = [workload["spec"]["template"]["spec"] for workload in (prometheus, grafana)]
    named = {v["configMap"]["name"] for pod in pods for v in pod["volumes"] if "configMap" in v}
    named |= {v["secret"]["secretName"] for pod in pods for v in pod["volumes"] if "secret" in v}
    assert named - {settings["metadata"]["name"]} <= made.keys()
    for name in named & made.keys() - {"stream-scorer-grafana"}:
        assert all((ROOT / path).exists() for path in made[name])
    mounts = {mount["name"]: mount["mountPath"] for mount in pods[1]["containers"][0]["volumeMounts"]}
    (provider,) = load(GRAFANA / "provisioning" / "dashboards" / "stream-scorer.yml")["providers"]
    assert mounts["dashboards"] == provider["options"]["path"]
    environment = {each["name"]: each["value"] for each in pods[1]["containers"][0]["env"]}
    assert environment["PROMETHEUS_URL"] == "http://stream-scorer-prometheus:9090"
    assert services["stream-scorer-prometheus"] == 9090


def test_the_dashboards_are_those_of_the_tool() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "make_dashboards.py"), "--check"]
    done = subprocess.run(tool, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
