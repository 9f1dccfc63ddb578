"""The Kustomize component that puts coalesce next to an application: what it changes, and that what it makes runs."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.system.processes import ROOT, Coalesce, coalesce_command, environment, executables
from tests.system.reliability.namespaces import impossible, network, server_at
from tests.system.wire import Wire

from .manifests import DEPLOY, Manifest, named, needs_kubectl, pod, rendered, rendered_with, the, variables

pytestmark = needs_kubectl

MARKED = {"coalesce-sidecar": "true"}
MIGRATION = {"name": "migration", "image": "application", "command": ["migrate"]}


def workload(kind: str, name: str, labels: dict[str, str]) -> Manifest:
    application = {
        "terminationGracePeriodSeconds": 77,
        "initContainers": [MIGRATION],
        "containers": [{"name": "application", "image": "application", "env": [{"name": "A", "value": "b"}]}],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }
    return {
        "apiVersion": "batch/v1" if kind == "Job" else "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "labels": labels},
        "spec": {"template": {"metadata": {"labels": {"app": name}}, "spec": application}},
    }


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "Job"])
def test_is_put_before_all_other_init_containers(kind: str, tmp_path: Path) -> None:
    """Of a workload that nobody wrote for coalesce. Native: it is started before them, and stays."""
    made = pod(the(rendered_with(tmp_path, ("sidecar",), workload(kind, "w", MARKED)), kind))
    coalesce, *others = made["initContainers"]
    assert coalesce["name"] == "coalesce"
    assert coalesce["restartPolicy"] == "Always"
    assert "startupProbe" in coalesce  # what comes behind waits for that
    assert others == [MIGRATION]


def test_changes_nothing_of_the_application(tmp_path: Path) -> None:
    before = workload("Deployment", "w", MARKED)
    after = the(rendered_with(tmp_path, ("sidecar",), before), "Deployment")
    template = after["spec"]["template"]
    assert template["metadata"]["labels"].pop("coalesce") == "sidecar"
    del template["spec"]["initContainers"][0]
    template["spec"]["volumes"].remove(
        {"name": "coalesce-socket", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
    )
    assert after == before


def test_who_has_no_label_is_left_alone(tmp_path: Path) -> None:
    plain = workload("Deployment", "plain", {"coalesce-sidecar": "false"})
    made = rendered_with(tmp_path, ("sidecar",), plain, workload("Deployment", "marked", MARKED))
    assert the(made, "Deployment", "plain") == plain
    assert "coalesce" in str(the(made, "Deployment", "marked"))


def test_all_of_them(tmp_path: Path) -> None:
    kinds = ("Deployment", "StatefulSet")
    made = rendered_with(tmp_path, ("mark", "sidecar"), *(workload(kind, "w", {"app": "w"}) for kind in kinds))
    for kind in kinds:
        assert pod(the(made, kind))["initContainers"][0]["name"] == "coalesce"
        assert the(made, kind)["metadata"]["labels"] == {"app": "w"} | MARKED


def test_what_its_head_says_to_write(tmp_path: Path) -> None:
    sidecar = Path("deploy", "kustomize", "sidecar")
    shutil.copytree(ROOT / sidecar, tmp_path / "coalesce" / sidecar)
    head = (ROOT / sidecar / "kustomization.yaml").read_text()
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    overlay.joinpath("kustomization.yaml").write_text("\n".join(re.findall(r"(?m)^#   (\w+: \[.*)$", head)))
    overlay.joinpath("deployment.yaml").write_text(yaml.safe_dump(workload("Deployment", "w", MARKED)))
    coalesce = pod(the(rendered(overlay), "Deployment"))["initContainers"][0]
    assert (coalesce["name"], coalesce["image"]) == ("coalesce", "registry.example/coalesce:0.1.0")


def test_the_example_uses_the_socket() -> None:
    made = pod(the(rendered(DEPLOY / "examples" / "sidecar"), "Deployment", "application"))
    coalesce = made["initContainers"][0]
    place = named(coalesce["volumeMounts"], "coalesce-socket")["mountPath"]
    listen = variables(coalesce)["COALESCE_LISTEN"].split()
    socket = next(each.removeprefix("unix://") for each in listen if each.startswith("unix://"))
    assert socket.startswith(f"{place}/")
    application = named(made["containers"], "application")
    assert named(application["volumeMounts"], "coalesce-socket")["mountPath"] == place
    assert socket in application["command"]
    assert coalesce["image"] == "registry.example/coalesce:0.1.0"


def test_a_secret_that_changes_restarts_what_reads_it() -> None:
    """COALESCE_UPSTREAM is read at the start: the generated name is in the Pod's template."""
    made = rendered(DEPLOY / "examples" / "sidecar")
    coalesce = pod(the(made, "Deployment", "application"))["initContainers"][0]
    name = named(coalesce["env"], "COALESCE_UPSTREAM")["valueFrom"]["secretKeyRef"]["name"]
    assert name == the(made, "Secret")["metadata"]["name"]
    assert name != "coalesce-upstream"


def ask(host: str, port: int, method: str, path: str) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.skipif(impossible() != "", reason=impossible())
def test_runs_as_it_is_configured() -> None:
    """In a network namespace, which is what a Pod is: reached by the application on loopback and by the socket, by the
    kubelet at the Pod's address; and nobody ends it from outside."""
    made = pod(the(rendered(DEPLOY / "examples" / "sidecar"), "Deployment", "application"))
    coalesce = made["initContainers"][0]
    place = named(coalesce["volumeMounts"], "coalesce-socket")["mountPath"]
    port = named(coalesce["ports"], "coalesce-admin")["containerPort"]
    volume = 'mount -t tmpfs tmpfs /run && mkdir "$0" && exec "$@"'
    with network() as net, server_at(executables()[0], net.here) as upstream:
        start = ["ip", "netns", "exec", net.name, "unshare", "-m", "sh", "-ec", volume, place]
        env = environment(**variables(coalesce), COALESCE_UPSTREAM=upstream.url)
        process = Coalesce([*start, *coalesce_command()], env)
        try:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert ask(net.there, port, "GET", coalesce[probe]["httpGet"]["path"]) == 200
            assert ask(net.there, port, "POST", "/quitquitquit") == 403
            with net.connect(("127.0.0.1", 6380)) as client:
                assert client.ask("PING") == b"+PONG\r\n"
            with Wire(f"/proc/{process.pid}/root{process.unix_path}") as client:
                assert client.ask("PING") == b"+PONG\r\n"
            for command in ("pause", "resume"):  # kubectl exec POD -c coalesce -- coalesce pause
                told = subprocess.run(
                    ["ip", "netns", "exec", net.name, *coalesce_command(), command],
                    env=env, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
                )  # fmt: skip
                assert (told.returncode, told.stdout.split(":")[0], told.stderr) == (0, f"{command}d", "")
            assert process.stop()[0] == 0
        finally:
            process.end()
