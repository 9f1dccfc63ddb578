"""coalesce as a Service of its own: who may use it, how it ends, and that what is configured runs."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

import pytest

from coalesce.config import Config
from tests.system.processes import Coalesce, coalesce_command, environment, executables, run_to_exit, short_directory
from tests.system.reliability.namespaces import impossible, network, server_at
from tests.system.wire import Wire

from .manifests import DEPLOY, Manifest, named, needs_kubectl, pod, rendered, rendered_with, the, variables

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_kubectl

BASE = DEPLOY / "kustomize" / "standalone"
EXAMPLE = DEPLOY / "examples" / "standalone"


def deployment() -> Manifest:
    return the(rendered(BASE), "Deployment")


def container() -> Manifest:
    return named(pod(deployment())["containers"], "coalesce")


def ports() -> set[str | int]:
    return {value for port in container()["ports"] for value in port.values()}


def test_clients_need_a_password() -> None:
    mounted = named(container()["volumeMounts"], "clients")
    assert variables(container())["COALESCE_CLIENT_PASSWORD_FILE"] == f"{mounted['mountPath']}/passwords"
    # Not optional: without the Secret, Kubernetes does not start it.
    assert named(pod(deployment())["volumes"], "clients")["secret"] == {"secretName": "coalesce-clients"}
    assert "COALESCE_UNPROTECTED" not in variables(container())


def test_passwords_of_clients_are_rotated_without_a_restart() -> None:
    """coalesce reads the file again when it changes; the upstream's URL it reads at its start."""
    made = rendered(EXAMPLE)
    [coalesce] = pod(the(made, "Deployment"))["containers"]
    clients = named(pod(the(made, "Deployment"))["volumes"], "clients")["secret"]["secretName"]
    upstream = named(coalesce["env"], "COALESCE_UPSTREAM")["valueFrom"]["secretKeyRef"]["name"]
    assert {each["metadata"]["name"] for each in made if each["kind"] == "Secret"} == {clients, upstream}
    assert clients == "coalesce-clients"
    assert upstream != "coalesce-upstream"


def test_open(tmp_path: Path) -> None:
    """Without what it takes away, everything else is as it was."""
    made = pod(the(rendered_with(tmp_path, ("open",), deployment()), "Deployment"))
    expected = copy.deepcopy(pod(deployment()))
    assert [volume["name"] for volume in expected.pop("volumes")] == ["clients"]
    [coalesce] = expected["containers"]
    assert [mount["name"] for mount in coalesce.pop("volumeMounts")] == ["clients"]
    coalesce["env"].remove(named(coalesce["env"], "COALESCE_CLIENT_PASSWORD_FILE"))
    assert made.pop("volumes", []) == []
    assert made["containers"][0].pop("volumeMounts", []) == []
    assert made == expected


def test_open_is_refused_where_coalesce_has_a_password() -> None:
    """By coalesce itself, so that the component can't give away what is in the Secret."""
    code, stderr = run_to_exit(
        COALESCE_LISTEN=variables(container())["COALESCE_LISTEN"].replace("6380", "0"),
        COALESCE_UPSTREAM="redis://app:secret@127.0.0.1:1",
    )
    assert code == 1
    assert "--client-password-file" in stderr


def test_time_to_end() -> None:
    """No node sends anything new, then what is owed is finished, then Kubernetes kills."""
    delay = float(variables(container())["COALESCE_SIGTERM_DELAY"])
    assert delay >= 5
    assert delay + Config.drain_timeout + 5 <= pod(deployment())["terminationGracePeriodSeconds"]
    systemd = re.search(r"TimeoutStopSec=(\d+)", (DEPLOY / "coalesce.service").read_text())
    assert systemd
    assert Config.drain_timeout + 5 <= int(systemd[1])


def test_what_belongs_together_is_called_the_same() -> None:
    made = rendered(BASE)
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment()["spec"]["selector"]["matchLabels"],
        the(made, "Service")["spec"]["selector"],
        the(made, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the(made, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in pod(deployment())["topologySpreadConstraints"]),
    ):
        assert selector.items() <= labels.items()
    target = the(made, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment()["metadata"]["name"])
    assert "replicas" not in deployment()["spec"]  # each `apply` would undo what it has scaled
    assert the(made, "Service")["spec"]["ports"][0]["targetPort"] in ports()
    for rule in the(made, "NetworkPolicy")["spec"]["ingress"]:
        assert {each["port"] for each in rule["ports"]} <= ports()


def test_everything_has_the_labels_that_tools_group_by() -> None:
    wanted = {"app.kubernetes.io/name": "coalesce", "app.kubernetes.io/component": "proxy"}
    for each in (*rendered(BASE), deployment()["spec"]["template"]):
        assert wanted.items() <= each["metadata"]["labels"].items()
    assert set(deployment()["spec"]["selector"]["matchLabels"]) == {"app"}


def test_prometheus_finds_both_kinds() -> None:
    """By a label that the manifests give, and a port that they name."""
    monitor = the(rendered(EXAMPLE), "PodMonitor")["spec"]
    [rule] = monitor["selector"]["matchExpressions"]
    sidecar = the(rendered(DEPLOY / "examples" / "sidecar"), "Deployment", "application")
    for workload in (deployment(), sidecar):
        assert workload["spec"]["template"]["metadata"]["labels"][rule["key"]] in rule["values"]
    [endpoint] = monitor["podMetricsEndpoints"]
    for each in (container(), pod(sidecar)["initContainers"][0]):
        assert endpoint["port"] in {port["name"] for port in each["ports"]}


@pytest.mark.skipif(impossible() != "", reason=impossible())
def test_runs_as_it_is_configured() -> None:
    """In a network namespace, which is what a Pod is: reached from other hosts, by those who know the password."""
    with network() as net, server_at(executables()[0], net.here) as upstream, short_directory() as directory:
        (directory / "passwords").write_text("knock-knock\n")
        settings = variables(container()) | {"COALESCE_CLIENT_PASSWORD_FILE": str(directory / "passwords")}
        settings["COALESCE_LISTEN"] += f" unix://{directory}/c.sock"  # (`Coalesce` waits for one of each)
        env = environment(**settings, COALESCE_UPSTREAM=upstream.url)
        process = Coalesce(["ip", "netns", "exec", net.name, *coalesce_command()], env)
        try:
            with Wire((net.there, 6380)) as client:
                assert client.ask("PING").startswith(b"-NOAUTH")
                assert client.ask("AUTH", "knock-knock") == b"+OK\r\n"
                assert client.ask("PING") == b"+PONG\r\n"
        finally:
            process.end()
