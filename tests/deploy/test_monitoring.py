"""Alerts and dashboard use metrics that there are, are what Prometheus can read, and are raised when they should be."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from .manifests import DEPLOY, needs_kubectl, rendered, the

if TYPE_CHECKING:
    from pathlib import Path

MONITORING = DEPLOY / "monitoring"
DEADLINE = 30.0

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="not installed: promtool")

# What /metrics shows: each name, and the labels that tell its series apart.
EXPOSED: dict[str, set[str]] = {
    "coalesce_build_info": {"version", "commit", "python"},
    "coalesce_clients": {"state"},
    "coalesce_clients_limit": set(),
    "coalesce_clients_accepted_total": set(),
    "coalesce_clients_refused_total": set(),
    "coalesce_clients_closed_total": {"reason"},
    "coalesce_clients_memory_bytes": set(),
    "coalesce_clients_memory_limit_bytes": set(),
    "coalesce_lanes": {"kind", "state"},
    "coalesce_lanes_limit": set(),
    "coalesce_leases": {"state"},
    "coalesce_leases_waiting": set(),
    "coalesce_leases_limit": set(),
    "coalesce_commands_total": {"connection", "outcome"},
    "coalesce_own_commands_total": set(),
    "coalesce_requests_unsent": set(),
    "coalesce_requests_in_flight": set(),
    **{
        f"coalesce_{name}_{part}": {"le"} if part == "bucket" else set()
        for name in ("batch_commands", "upstream_round_trip_seconds", "queue_wait_seconds")
        for part in ("bucket", "sum", "count")
    },
    "coalesce_upstream_sent_bytes_total": set(),
    "coalesce_upstream_received_bytes_total": set(),
    "coalesce_lane_losses_total": {"reason"},
    "coalesce_dials_total": {"outcome"},
    "coalesce_protocol_errors_total": {"side"},
    "coalesce_faults_total": set(),
    "coalesce_log_lines_dropped_total": set(),
    "coalesce_paused": set(),
    "coalesce_draining": set(),
    # prometheus_client's ProcessCollector
    "process_resident_memory_bytes": set(),
    "process_cpu_seconds_total": set(),
}
# Prometheus's own, and what it adds to every series.
UP = {"up": set[str]()}
TARGET = {"job", "instance"}
METRIC = re.compile(r"\b((?:coalesce|process)_\w+|up)\b(?:\{([^}]*)\})?")


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def unknown(expression: str) -> list[str]:
    """Metrics, and labels of theirs, that there are not."""
    wrong = []
    for name, selector in METRIC.findall(expression):
        known = EXPOSED | UP
        labels = set(re.findall(r"(\w+)\s*[=!]~?", selector))
        if name not in known or not labels <= known[name] | TARGET:
            wrong.append(f"{name}{{{selector}}}")
    return wrong


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in rules()), *panels()])
def test_uses_only_what_is_exposed(expression: str) -> None:
    assert METRIC.search(expression)
    assert unknown(expression) == []


def test_readme_tells_of_each_metric_and_of_no_other() -> None:
    readme = (DEPLOY.parent / "README.md").read_text()
    _, _, after = readme.partition("| metrics (`coalesce_...`) | what they tell |\n")
    cells = [row.split(" | ")[0] for row in after.partition("\n\n")[0].splitlines()]
    told = [cell.partition("{") for row in cells for cell in re.findall(r"`([^`]+)`", row) if cell != "process_*"]
    labels = {f"coalesce_{name}": set(re.findall(r"\w+", rest)) for name, _, rest in told}
    exposed = {
        re.sub(r"_(bucket|sum|count)$", "", name): found - {"le"}
        for name, found in EXPOSED.items()
        if not name.startswith("process_")
    }
    assert labels == exposed


def test_what_is_not_exposed_is_seen() -> None:
    assert unknown("rate(coalesce_clients_total[5m])") == ["coalesce_clients_total{}"]
    assert unknown('coalesce_clients{kind="shared"} > 0') == ['coalesce_clients{kind="shared"}']


def test_the_variables_of_the_dashboard_are_metrics_too() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert len(queries) == 2
    for query in queries:
        assert unknown(query) == []


def test_each_alert_says_what_to_do() -> None:
    for rule in rules():
        assert rule["annotations"].keys() == {"summary", "runbook"}
        assert rule["labels"]["severity"] in {"critical", "warning"}


@needs_kubectl
def test_the_operator_gets_the_same_rules() -> None:
    """`python3 deploy/monitoring/prometheusrule.py` writes them anew."""
    made = rendered(MONITORING)
    assert the(made, "PrometheusRule")["spec"] == yaml.safe_load((MONITORING / "rules.yaml").read_text())
    dashboard = the(made, "ConfigMap")["data"]["coalesce.json"]
    assert dashboard == (MONITORING / "dashboard.json").read_text()


def test_the_generated_file_is_the_generator_s() -> None:
    spec = importlib.util.spec_from_file_location("prometheusrule", MONITORING / "prometheusrule.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.prometheusrule((MONITORING / "rules.yaml").read_text())
    assert made == (MONITORING / "prometheusrule.yaml").read_text()


def promtool(*arguments: str) -> str:
    told = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


@needs_promtool
def test_rules_are_valid() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(MONITORING / "rules.yaml"))


@needs_promtool
def test_alerts_are_raised_when_they_should_be() -> None:
    promtool("test", "rules", str(DEPLOY.parent / "tests" / "deploy" / "alerts.yaml"))


def test_each_alert_is_tested() -> None:
    tested = (DEPLOY.parent / "tests" / "deploy" / "alerts.yaml").read_text()
    assert [rule["alert"] for rule in rules() if f'alertname="{rule["alert"]}"' not in tested] == []


@needs_promtool
def test_panels_are_promql(tmp_path: Path) -> None:
    """As recording rules: promtool checks no dashboards."""
    made = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(panels())
    ]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    promtool("check", "rules", str(tmp_path / "panels.yaml"))
