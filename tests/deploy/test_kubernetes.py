"""deploy/kubernetes is valid by Kubernetes' own schemas, and consistent with the code."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from api.app import create_app
from cli.main import nowserving
from models.config.settings import Settings
from tests.deploy import manifests
from tests.deploy.manifests import FILES, FOLDER, Manifest, components, containers, everything, of_kind, selected, settings

ROOT = FOLDER.parent.parent
# The oldest that is still kept up somewhere, and the newest that there are schemas of.
VERSIONS = ("1.32", kubernetes_validate.latest_version())
SHIPPED = {"nowserving", "valkey/valkey:9"}


def validate(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


# By the schemas


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_every_manifest_is_valid(file: Path, version: str) -> None:
    found = manifests.read(file)
    for manifest in found:
        validate(manifest, version)

    assert found


@pytest.mark.parametrize(("key", "wrong"), [("replicaz", 1), ("replicas", "two")])
def test_misspelt_or_mistyped_field_is_refused(key: str, wrong: object) -> None:
    manifest = copy.deepcopy(of_kind("Deployment")["nowserving-api"])
    manifest["spec"][key] = wrong

    with pytest.raises(kubernetes_validate.ValidationError):
        validate(manifest, VERSIONS[1])


def test_every_file_is_in_kustomization() -> None:
    shown = set(yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["resources"])

    assert {file.name for file in FILES if file.parent.name == "base"} == shown


def built(overlay: Path) -> list[Manifest]:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl on this machine, whose kustomize puts the manifests together")
    made = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=False)
    assert 0 == made.returncode, made.stderr
    return [each for each in yaml.safe_load_all(made.stdout) if each]


def test_kustomized_example_is_valid() -> None:
    made = built(FOLDER / "example")
    for manifest in made:
        validate(manifest, VERSIONS[1])
    worker = next(each for each in made if each["kind"] == "Deployment" and each["metadata"]["name"] == "nowserving-worker")
    shown = {each["metadata"]["name"]: each["data"] for each in made if each["kind"] == "ConfigMap"}
    container = worker["spec"]["template"]["spec"]["containers"][0]

    assert "replicas" not in worker["spec"]  # the autoscaler's
    assert {"nowserving"} == {each["metadata"]["namespace"] for each in made}
    assert container["image"].startswith("registry.example.com/nowserving:")
    assert "https://queue.example.com" == shown[container["envFrom"][0]["configMapRef"]["name"]]["NOWSERVING_PUBLIC_URL"]
    assert settings().items() <= shown[container["envFrom"][0]["configMapRef"]["name"]].items()


def test_kustomize_keeps_namespace_selectors() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in built(FOLDER / "example") if each["kind"] == "NetworkPolicy"}

    assert [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}] == policies["nowserving"]["egress"][0][
        "to"
    ]


def test_keda_replaces_the_other_autoscaler(tmp_path: Path) -> None:
    here = os.path.relpath(FOLDER, tmp_path.resolve())
    overlay = {"kind": "Kustomization", "resources": [f"{here}/base"], "components": [f"{here}/keda"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    made = {(each["kind"], each["metadata"]["name"]): each["spec"] for each in built(tmp_path) if "spec" in each}

    assert "replicas" not in made["Deployment", "nowserving-worker"]
    assert ("ScaledObject", "nowserving-worker") in made
    assert ("HorizontalPodAutoscaler", "nowserving-worker") not in made


# By what the code calls things


def test_every_setting_is_valid() -> None:
    own = {one["name"]: one["value"] for _, container in containers() for one in container.get("env", [])}
    shown = {**settings(), **own}
    plain = {
        name.removeprefix("NOWSERVING_").lower(): value
        for name, value in shown.items()
        if name.startswith("NOWSERVING_") and not name.endswith("_FILE")
    }

    assert [] == [name for name in shown if name.removeprefix("NOWSERVING_").lower() not in Settings.model_fields]
    assert set(plain) <= Settings(**plain).model_fields_set


def test_every_command_is_valid() -> None:
    for component, container in containers():
        if container["image"] != "nowserving":
            continue
        name, *words = container["args"]
        command = nowserving.get_command(click.Context(nowserving), name)
        assert command is not None, name
        command.make_context(name, [str(word) for word in words])  # raises on what it does not take

        assert name in {"migrate", component} or component == "webhooks"


def test_invalid_command_is_detected() -> None:
    with pytest.raises(click.UsageError):
        nowserving.commands["worker"].make_context("worker", ["--proceses", "1"])


def test_images_match_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())

    assert SHIPPED == {container["image"] for _, container in containers()}
    assert SHIPPED <= {service["image"] for service in compose["services"].values()}


def test_containers_listen_on_their_configured_ports() -> None:
    ports = {(name, port["name"]): port["containerPort"] for name, one in containers() for port in one.get("ports", [])}
    shown = Settings(**{f"{name}_metrics_port": settings()[f"NOWSERVING_{name.upper()}_METRICS_PORT"] for name in ("pacer", "worker")})

    assert "0.0.0.0" == settings()["NOWSERVING_METRICS_HOST"]
    assert {
        ("api", "http"): shown.port, ("flower", "http"): shown.flower_port, ("pacer", "metrics"): shown.pacer_metrics_port,
        ("worker", "metrics"): shown.worker_metrics_port, ("webhooks", "metrics"): shown.worker_metrics_port, ("redis", "redis"): 6379,
    } == ports  # fmt: skip


def test_probes_use_existing_paths_and_ports() -> None:
    served = {rule.rule for rule in create_app().url_map.iter_rules()}
    for component, container in containers():
        names = {port["name"] for port in container.get("ports", [])}
        for probe in (container.get(f"{kind}Probe") for kind in ("startup", "liveness", "readiness")):
            if probe is None:
                continue
            asked = probe.get("httpGet") or probe["tcpSocket"]

            assert asked["port"] in names, component
            assert asked.get("path") in (served if component == "api" else {"/healthz", None}), component


def test_every_long_running_container_has_probes() -> None:
    assert {name for name, one in containers() if one["name"] != "migrate"} == {
        name for name, one in containers() if "livenessProbe" in one
    }
    # What others are ill of is not cured by a restart of the API.
    assert "/healthz" == components()["api"]["containers"][0]["livenessProbe"]["httpGet"]["path"]


def test_selectors_match_pods() -> None:
    for deployment in of_kind("Deployment").values():
        labels = deployment["spec"]["template"]["metadata"]["labels"]

        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for kind, field in (("Service", "selector"), ("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for name, one in of_kind(kind).items():
            selector = one["spec"][field] if kind != "Service" else {"matchLabels": one["spec"][field]}

            assert selected(selector) <= set(components()), name


def test_services_and_ingress_target_existing_ports() -> None:
    ports = {name: {port["name"] for one in pod["containers"] for port in one["ports"]} for name, pod in components().items()}
    for service in of_kind("Service").values():
        (component,) = selected({"matchLabels": service["spec"]["selector"]})

        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports[component]
    for path in ways_in():
        backend = path["backend"]["service"]

        assert backend["port"]["name"] in {port["name"] for port in of_kind("Service")[backend["name"]]["spec"]["ports"]}


def ways_in() -> list[Manifest]:
    return list(of_kind("Ingress")["nowserving"]["spec"]["rules"][0]["http"]["paths"])


def test_flower_is_served_under_ingress_path() -> None:
    paths = {
        each["backend"]["service"]["name"]: each["path"] for each in of_kind("Ingress")["nowserving"]["spec"]["rules"][0]["http"]["paths"]
    }

    assert settings()["NOWSERVING_FLOWER_URL_PREFIX"] == paths["nowserving-flower"]


def test_network_policy_allows_only_store_clients() -> None:
    policies = of_kind("NetworkPolicy")
    ours = set(components()) - {"redis"}

    assert set(components()) == selected(policies["nowserving"]["spec"]["podSelector"])
    assert ours == selected(policies["nowserving-stores"]["spec"]["podSelector"])
    assert ours == selected(policies["nowserving-redis"]["spec"]["ingress"][0]["from"][0]["podSelector"])
    assert {"worker", "webhooks"} == selected(policies["nowserving-out"]["spec"]["podSelector"])


@pytest.mark.parametrize(("component", "container"), list(containers()), ids=lambda each: each if isinstance(each, str) else each["name"])
def test_containers_have_minimal_privileges(component: str, container: Manifest) -> None:
    pod = components()[component]

    assert {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}} == container[
        "securityContext"
    ]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"] and not pod["enableServiceLinks"]
    assert {"cpu", "memory"} == set(container["resources"]["requests"])
    assert mebibytes(container["resources"]["limits"]["memory"]) > mebibytes(container["resources"]["requests"]["memory"])


def test_user_matches_image() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()

    for name, pod in components().items():
        if name != "redis":
            assert f"USER {pod['securityContext']['runAsUser']}" in dockerfile


def mebibytes(quantity: str) -> int:
    found = re.fullmatch(r"(\d+)(Mi|Gi)", quantity)
    assert found, quantity
    return int(found[1]) * (1024 if found[2] == "Gi" else 1)


def test_termination_grace_covers_shutdown() -> None:
    pods, default = components(), Settings.model_fields["shutdown_grace_s"].default
    own = {one["name"]: float(one["value"]) for one in pods["webhooks"]["containers"][0]["env"]}
    gunicorn = re.search(r"^graceful_timeout = (\d+)$", (ROOT / "api" / "serve.py").read_text(), re.MULTILINE)
    assert gunicorn
    before_s = pods["api"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert default < pods["worker"]["terminationGracePeriodSeconds"]
    assert own["NOWSERVING_SHUTDOWN_GRACE_S"] < pods["webhooks"]["terminationGracePeriodSeconds"]
    assert int(gunicorn[1]) + before_s < pods["api"]["terminationGracePeriodSeconds"]


# Secrets


def test_secret_has_all_keys() -> None:
    example = manifests.read(FOLDER / "secret.example.yaml")[0]
    volumes = [volume["secret"] for pod in components().values() for volume in pod["volumes"] if "secret" in volume]
    items = {item["key"] for volume in volumes for item in volume.get("items", [])}
    files = {name: Path(value) for name, value in settings().items() if name.endswith("_FILE")}
    mounts = {mount["mountPath"] for _, one in containers() for mount in one["volumeMounts"] if mount["name"] == "secrets"}

    assert {example["metadata"]["name"]} == {volume["secretName"] for volume in volumes}
    assert mounts == {str(file.parent) for file in files.values()}
    assert set(example["stringData"]) == {file.name for file in files.values()} | items
    assert "redis_password" in items


def test_manifests_contain_no_secret() -> None:
    example = manifests.read(FOLDER / "secret.example.yaml")[0]["stringData"]

    assert [] == [each["metadata"]["name"] for each in everything() if each["kind"] == "Secret"]
    assert {True} == {"CHANGE-ME" in value for value in example.values()}


# Workers by the line


def autoscaler() -> Any:
    return manifests.read(FOLDER / "hpa" / "hpa.yaml")[0]["spec"]


def scaled_object() -> Any:
    return manifests.read(FOLDER / "keda" / "scaledobject.yaml")[0]["spec"]


def test_autoscalers_query_recorded_series() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "monitoring" / "scaling.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"]}
    adapter = yaml.safe_load((FOLDER / "hpa" / "adapter-rules.yaml").read_text())["rules"]["external"][0]

    assert {"nowserving:wanted_slots"} == recorded
    assert adapter["seriesQuery"] == '{__name__="nowserving:wanted_slots"}'
    assert adapter["name"]["as"] == autoscaler()["metrics"][0]["external"]["metric"]["name"]
    assert "nowserving:wanted_slots" == scaled_object()["triggers"][0]["metadata"]["query"]


def test_autoscalers_know_calls_per_pod() -> None:
    arguments = components()["worker"]["containers"][0]["args"]
    threads = int(arguments[arguments.index("--threads") + 1]) * int(arguments[arguments.index("--processes") + 1])
    wanted = {autoscaler()["metrics"][0]["external"]["target"]["averageValue"], scaled_object()["triggers"][0]["metadata"]["threshold"]}

    assert {str(threads * 3 // 4)} == wanted
    assert {"nowserving-worker"} == {autoscaler()["scaleTargetRef"]["name"], scaled_object()["scaleTargetRef"]["name"]}


def test_keda_fields_are_known() -> None:
    """No package for this Python has KEDA's schema; these are the fields of keda.sh/docs/latest/reference/scaledobject-spec."""
    shown = scaled_object()
    known = {
        "scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount", "minReplicaCount",
        "maxReplicaCount", "fallback", "advanced", "triggers",
    }  # fmt: skip
    behavior = shown["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    spec = {"scaleTargetRef": {"kind": "Deployment", "name": "x"}, "maxReplicas": 2, "behavior": behavior}
    validate({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"}, "spec": spec}, VERSIONS[1])

    assert set(shown) <= known
    assert {"failureThreshold", "replicas"} == set(shown["fallback"])
    assert set(shown["triggers"][0]) <= {"type", "metricType", "metadata", "name", "authenticationRef", "useCachedMetrics"}
    assert set(shown["triggers"][0]["metadata"]) <= {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues"}
