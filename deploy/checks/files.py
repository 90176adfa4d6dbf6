"""Checks files that no test runs: docker-compose.yml against the Compose Specification, the Dockerfile by hadolint, alerts by promtool.

deploy/compose-spec.json is that specification's JSON schema (Apache-2.0), taken from the npm package dclint 3.1.0.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

from models.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
RULES = ("alerts", "scaling")


def main() -> int:
    """Prints all errors; returns 0 if there are none."""
    errors = [
        *compose_errors(COMPOSE.read_text()),
        *setting_errors("docker-compose.yml"),
        *setting_errors("Dockerfile"),
        *dockerfile_errors(),
        *rule_errors(),
    ]
    for line in errors:
        print(line, file=sys.stderr)
    return 1 if errors else 0


def compose_errors(text: str) -> Iterator[str]:
    """Yields the violations of the Compose Specification, one per line."""
    schema: dict[str, Any] = json.loads((ROOT / "deploy" / "compose-spec.json").read_text())
    for error in Draft7Validator(schema).iter_errors(yaml.safe_load(text)):
        yield f"docker-compose.yml: {'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message}"


def setting_errors(name: str) -> Iterator[str]:
    """Yields each NOWSERVING_… variable in the file that is no setting."""
    known = {f"NOWSERVING_{field.upper()}" for field in Settings.model_fields}
    for setting in sorted(set(re.findall(r"\bNOWSERVING_[A-Z_]+\b", (ROOT / name).read_text())) - known):
        yield f"{name}: {setting} is not a field of models/config/settings.py"


def dockerfile_errors() -> Iterator[str]:
    """Yields the findings of hadolint."""
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([str(hadolint), "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    yield from (run.stdout + run.stderr).splitlines()


def rule_errors() -> Iterator[str]:
    """Yields the errors of promtool in the rules and their tests. Without promtool nothing is checked."""
    promtool = shutil.which("promtool")
    if promtool is None:
        print("promtool is missing (Debian package prometheus): deploy/monitoring/*.yml was not checked", file=sys.stderr)
        return
    for command in [("check", f"{name}.yml") for name in RULES] + [("test", f"{name}_test.yml") for name in RULES]:
        run = subprocess.run(
            [promtool, command[0], "rules", command[1]], cwd=ROOT / "deploy" / "monitoring", capture_output=True, text=True, check=False
        )
        if run.returncode:
            yield from (run.stdout + run.stderr).splitlines()


if __name__ == "__main__":
    sys.exit(main())
