"""deploy/kubernetes as data: what its files say, and what their parts are called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
# Of kustomize, of a Helm chart and of KEDA: no kinds of Kubernetes' own.
FOREIGN = {"kustomization.yaml", "adapter-rules.yaml", "scaledobject.yaml"}
FILES = sorted(file for file in FOLDER.rglob("*.yaml") if file.name not in FOREIGN)
Manifest = dict[str, Any]


def read(file: Path) -> list[Manifest]:
    """What stands in this file."""
    return [each for each in yaml.safe_load_all(file.read_text()) if each]


def everything() -> list[Manifest]:
    """All of the base."""
    return [each for file in FILES if file.parent.name == "base" for each in read(file)]


def of_kind(kind: str) -> dict[str, Manifest]:
    """Of the base, by name."""
    return {each["metadata"]["name"]: each for each in everything() if each["kind"] == kind}


def components() -> dict[str, Manifest]:
    """The pod of each component."""
    found = of_kind("Deployment").values()
    return {
        each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"]["template"]["spec"] for each in found
    }


def containers() -> Iterator[tuple[str, Manifest]]:
    """Every container, with its component."""
    for name, pod in components().items():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield name, container


def selected(selector: Manifest) -> set[str]:
    """The components that this selector means."""
    wanted = selector.get("matchLabels", {}).get("app.kubernetes.io/component")
    by_expression = [one["values"] for one in selector.get("matchExpressions", []) if one["key"] == "app.kubernetes.io/component"]
    return {wanted} if wanted else {name for values in by_expression for name in values} or set(components())


def settings() -> dict[str, str]:
    """What settings.env tells all parts."""
    lines = (FOLDER / "base" / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
