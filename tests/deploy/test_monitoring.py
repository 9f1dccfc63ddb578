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
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from coalesce.core.ledger import Kind, Outcomes
from coalesce.tally import Closed, Dial, Lost, Side
from tests.system.admin import ADMIN, OPENMETRICS, ask
from tests.system.processes import running_coalesce, running_server
from tests.system.versions import NEWEST

from .manifests import DEPLOY, needs_kubectl, rendered, the

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.processes import Coalesce

MONITORING = DEPLOY / "monitoring"
DEADLINE = 30.0

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="not installed: promtool")

# Prometheus's own, and what it adds to every series.
UP: Exposed = {"up": {}}
TARGET = {"job", "instance"}
METRIC = re.compile(r"\b((?:coalesce|process)_\w+|up)\b(?:\{([^}]*)\})?")
# In a selector: a label, how it is compared, and with what.
LABEL = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')

# What /metrics shows: of each name, the labels that tell its series apart, and their values.
Exposed = dict[str, dict[str, set[str]]]


@pytest.fixture(scope="module")
def coalesce() -> Iterator[Coalesce]:
    """It has served nobody."""
    with running_server(NEWEST) as upstream, running_coalesce(upstream.url, *ADMIN) as coalesce:
        yield coalesce


@pytest.fixture(scope="module")
def exposed(coalesce: Coalesce) -> Exposed:
    """What there is later is there from the start, so that a rate sees it."""
    found: Exposed = {}
    text = ask(coalesce, "/metrics", headers={"Accept": OPENMETRICS}).body.decode()
    for family in read_openmetrics(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
            if family.type == "counter" and sample.labels and "dials" not in sample.name:
                assert sample.value == 0, sample
    return found


@pytest.fixture(scope="module")
def said(coalesce: Coalesce) -> str:
    return ask(coalesce, "/metrics").body.decode()


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def unknown(expression: str, exposed: Exposed) -> list[str]:
    """Metrics, labels of theirs, and values of these, that there are not."""
    wrong = []
    for name, selector in METRIC.findall(expression):
        known = (exposed | UP).get(name)
        if known is None or not all(
            label in TARGET or (label in known and (value in known[label] or "~" in how))
            for label, how, value in LABEL.findall(selector)
        ):
            wrong.append(f"{name}{{{selector}}}")
    return wrong


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in rules()), *panels()])
def test_uses_only_what_is_exposed(expression: str, exposed: Exposed) -> None:
    assert METRIC.search(expression)
    assert unknown(expression, exposed) == []


def test_readme_tells_of_each_metric_and_of_no_other(exposed: Exposed) -> None:
    readme = (DEPLOY.parent / "README.md").read_text()
    _, _, after = readme.partition("| metrics (`coalesce_...`) | what they tell |\n")
    cells = [row.split(" | ")[0] for row in after.partition("\n\n")[0].splitlines()]
    told = [cell.partition("{") for row in cells for cell in re.findall(r"`([^`]+)`", row) if cell != "process_*"]
    labels = {f"coalesce_{name}": set(re.findall(r"\w+", rest)) for name, _, rest in told}
    assert labels == {
        re.sub(r"_(bucket|sum|count)$", "", name): set(found) - {"le"}
        for name, found in exposed.items()
        if name.startswith("coalesce_")
    }


def test_what_is_not_exposed_is_seen(exposed: Exposed) -> None:
    for wrong in (
        "coalesce_clients_total{}",
        'coalesce_clients{kind="shared"}',
        'coalesce_clients{state="away"}',
        'coalesce_lane_losses_total{reason!="away"}',
    ):
        assert unknown(f"rate({wrong}[5m]) > 0", exposed) == [wrong]
    assert unknown('coalesce_clients{state="shared",job="coalesce"} / coalesce_clients_limit', exposed) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("clients_closed", {"reason": {each.value for each in Closed}}),
        ("lane_losses", {"reason": {each.value for each in Lost}}),
        ("dials", {"outcome": {each.value for each in Dial}}),
        ("protocol_errors", {"side": {each.value for each in Side}}),
        ("commands", {"connection": {each.value for each in Kind}, "outcome": set(Outcomes._fields)}),
    ],
)
def test_counters_are_there_before_there_is_anything_to_count(
    name: str, values: dict[str, set[str]], exposed: Exposed
) -> None:
    assert exposed[f"coalesce_{name}_total"] == values


def test_the_variables_of_the_dashboard_are_metrics_too(exposed: Exposed) -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert len(queries) == 2
    for query in queries:
        assert unknown(query, exposed) == []


def test_panels_stand_side_by_side() -> None:
    """Each has its own number and place: Grafana moves or drops one that has another's."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(at["x"] + x, at["y"] + y) for at in places for x in range(at["w"]) for y in range(at["h"])]
    assert len(set(cells)) == len(cells)
    assert all(at["x"] + at["w"] <= 24 for at in places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


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


def test_help_explains_each_value_of_a_label(said: str) -> None:
    for family in read_text(said):
        values = {value for each in family.samples for label, value in each.labels.items() if label != "le"}
        if family.name != "coalesce_build_info":
            assert {value for value in values if not re.search(rf"\b{value}\b", family.documentation)} == set()


def test_help_says_more_than_the_name(said: str) -> None:
    for family in read_text(said):
        if family.name.startswith("coalesce_"):
            words = set(re.findall(r"[a-z]+", family.documentation.lower()))
            assert len(words - set(family.name.split("_"))) > 4, family.name


@needs_promtool
def test_metrics_are_as_prometheus_s_linter_wants_them(said: str) -> None:
    told = subprocess.run(
        ["promtool", "check", "metrics"], input=said, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


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
