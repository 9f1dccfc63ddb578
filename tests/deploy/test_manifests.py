"""Everything in deploy/ that is for Kubernetes renders, is valid there, and is careful with rights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kubernetes_validate
import pytest

from coalesce.config import Config

from .manifests import DEPLOY, Manifest, named, needs_kubectl, pod, rendered, variables

if TYPE_CHECKING:
    from pathlib import Path

# The oldest Kubernetes that each of them says it is for, and the newest that there is a schema of.
EXAMPLES = {"sidecar": "1.29", "standalone": "1.30"}
NEWEST = kubernetes_validate.latest_version().removesuffix(".0")
# Of an operator, which brings its own schemas.
WITHOUT_A_SCHEMA = {"monitoring.coreos.com/v1"}

pytestmark = needs_kubectl


def workloads(directory: Path) -> list[Manifest]:
    return [each for each in rendered(directory) if each["kind"] in {"Deployment", "StatefulSet", "Job"}]


def containers_of_coalesce() -> list[tuple[Manifest, Manifest]]:
    """Each one, and the specification of its Pod."""
    pods = [pod(each) for example in EXAMPLES for each in workloads(DEPLOY / "examples" / example)]
    return [
        (container, pod)
        for pod in pods
        for container in [*pod.get("initContainers", []), *pod["containers"]]
        if container["name"] == "coalesce"
    ]


def bytes_of(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1024**2, "Gi": 1024**3}[quantity[-2:]]


def test_each_example_is_tested() -> None:
    assert {path.name for path in (DEPLOY / "examples").iterdir()} == set(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_is_valid(example: str) -> None:
    for manifest in rendered(DEPLOY / "examples" / example):
        if manifest["apiVersion"] not in WITHOUT_A_SCHEMA:
            for version in (EXAMPLES[example], NEWEST):
                assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_validation_sees_what_is_wrong() -> None:
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


def test_every_example_runs_coalesce() -> None:
    assert len(containers_of_coalesce()) >= len(EXAMPLES)


def test_coalesce_has_no_rights() -> None:
    """What Kubernetes calls the restricted Pod security standard, and a root file system that is read-only."""
    for container, _ in containers_of_coalesce():
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_probes() -> None:
    """What each one asks for is what it is named after; liveness, which restarts it, is the most patient."""
    for container, _ in containers_of_coalesce():
        port = named(container["ports"], "coalesce-admin")["containerPort"]
        assert port == 9380
        for kind, path in (("startup", "/startup"), ("readiness", "/readiness"), ("liveness", "/liveness")):
            assert container[f"{kind}Probe"]["httpGet"] == {"path": path, "port": "coalesce-admin"}
        liveness = container["livenessProbe"]
        assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 30


def test_the_startup_probe_waits_for_longer_than_coalesce_does() -> None:
    """That ends by itself then, with its last attempt, and says why; the kubelet would only kill it."""
    for container, _ in containers_of_coalesce():
        waits = float(variables(container)["COALESCE_START_TIMEOUT"])
        probe = container["startupProbe"]
        assert waits + Config.connect_timeout + 5 <= probe["periodSeconds"] * probe["failureThreshold"]


def test_why_it_ended_is_shown_by_kubernetes() -> None:
    """A line on standard error says why; it writes no file for that."""
    for container, _ in containers_of_coalesce():
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_memory_has_room_for_the_clients() -> None:
    """README, "Configure it": what clients hold is there twice while it is packed, and 64 MB come on top twice."""
    for container, _ in containers_of_coalesce():
        limit = bytes_of(container["resources"]["limits"]["memory"])
        held = int(next(each["value"] for each in container["env"] if each["name"] == "COALESCE_CLIENTS_MEMORY"))
        assert 2 * held + 2 * 64 * 1024**2 + 45 * 1024**2 <= limit


def test_no_password_is_in_a_manifest() -> None:
    """The upstream's URL may have one, so it comes from a Secret."""
    for container, _ in containers_of_coalesce():
        upstream = named(container["env"], "COALESCE_UPSTREAM")
        assert upstream["valueFrom"]["secretKeyRef"]["name"].startswith("coalesce-upstream")
        assert upstream["valueFrom"]["secretKeyRef"]["key"] == "url"
        assert "optional" not in upstream["valueFrom"]["secretKeyRef"]
