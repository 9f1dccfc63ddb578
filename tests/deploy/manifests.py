"""Kubernetes manifests as `kubectl kustomize` makes them of deploy/."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.system.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = ROOT / "deploy"
DEADLINE = 30.0  # seconds for kubectl, which takes half of one

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="not installed: kubectl")

Manifest = dict[str, Any]


@functools.cache
def rendered(directory: Path) -> tuple[Manifest, ...]:
    """What `kubectl apply -k` would apply."""
    told = subprocess.run(
        ["kubectl", "kustomize", str(directory)], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert told.returncode == 0, told.stderr
    assert "Warning" not in told.stderr, told.stderr
    return tuple(yaml.safe_load_all(told.stdout))


def rendered_with(directory: Path, components: tuple[str, ...], *resources: Manifest) -> tuple[Manifest, ...]:
    """The same of an overlay that is made in `directory`: these resources, with components of deploy/kustomize."""
    (directory / "resources.yaml").write_text(yaml.safe_dump_all(resources))
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["resources.yaml"],
        "components": [os.path.relpath(DEPLOY / "kustomize" / name, directory.resolve()) for name in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return rendered(directory)


def the(manifests: tuple[Manifest, ...], kind: str, name: str | None = None) -> Manifest:
    """The only one of its kind (and name)."""
    found = [each for each in manifests if each["kind"] == kind and name in {None, each["metadata"]["name"]}]
    assert len(found) == 1, [(each["kind"], each["metadata"]["name"]) for each in manifests]
    return found[0]


def pod(workload: Manifest) -> Manifest:
    """The specification of its Pods."""
    return workload["spec"]["template"]["spec"]


def named(items: list[Manifest], name: str) -> Manifest:
    """The only one of this name."""
    found = [item for item in items if item["name"] == name]
    assert len(found) == 1, items
    return found[0]


def variables(container: Manifest) -> dict[str, str]:
    """Of its environment, what is given by value."""
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}
