"""Reads the manifests in deploy/kubernetes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
# Files of kustomize, of a Helm chart and of KEDA: not Kubernetes' own kinds.
FOREIGN = {"kustomization.yaml", "adapter-rules.yaml", "scaledobject.yaml"}
FILES = sorted(file for file in FOLDER.rglob("*.yaml") if file.name not in FOREIGN)
Manifest = dict[str, Any]


def read(file: Path) -> list[Manifest]:
    """Returns the documents of a file."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def everything() -> list[Manifest]:
    """Returns all manifests of the base."""
    return [manifest for file in FILES if file.parent.name == "base" for manifest in read(file)]


def of_kind(kind: str) -> dict[str, Manifest]:
    """Returns the manifests of this kind in the base, by name."""
    return {manifest["metadata"]["name"]: manifest for manifest in everything() if manifest["kind"] == kind}


def components() -> dict[str, Manifest]:
    """Returns the pod spec of each component."""
    templates = [deployment["spec"]["template"] for deployment in of_kind("Deployment").values()]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template["spec"] for template in templates}


def containers() -> Iterator[tuple[str, Manifest]]:
    """Yields every container with its component."""
    for name, pod in components().items():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield name, container


def selected(selector: Manifest) -> set[str]:
    """Returns the components that this selector matches."""
    label = selector.get("matchLabels", {}).get("app.kubernetes.io/component")
    by_expression = [item["values"] for item in selector.get("matchExpressions", []) if item["key"] == "app.kubernetes.io/component"]
    return {label} if label else {name for values in by_expression for name in values} or set(components())


def settings() -> dict[str, str]:
    """Returns the variables of settings.env."""
    lines = (FOLDER / "base" / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
