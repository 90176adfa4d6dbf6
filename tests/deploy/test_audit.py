"""`make audit` finds vulnerable versions, and never reports unchecked packages as clean."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from deploy.checks import audit
from deploy.checks.audit import NotChecked, Report

FILE = Path("requirements/runtime.txt")


def program(answer: object, *, status: int = 0) -> list[str]:
    """Returns a command that ignores its arguments, prints this and exits with this status."""
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return ["/bin/sh", "-c", f"printf %s {shlex.quote(text)}; exit {status}"]


WEAK = {"name": "weak", "version": "1.0", "vulns": [{"id": "PYSEC-2026-1"}, {"id": "PYSEC-2026-2"}]}
GOOD, SKIPPED = {"name": "good", "version": "2.0", "vulns": []}, {"name": "hidden", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "vulnerabilities", "unchecked"),
    [([GOOD], [], 0), ([GOOD, WEAK], ["weak 1.0: PYSEC-2026-1", "weak 1.0: PYSEC-2026-2"], 0), ([SKIPPED, GOOD], [], 1)],
)
def test_python_packages(packages: list[object], vulnerabilities: list[str], unchecked: int) -> None:
    command = program({"dependencies": packages}, status=1 if vulnerabilities else 0)

    assert Report(vulnerabilities, unchecked) == audit.audit_python(FILE, command=command)


def test_node_packages(tmp_path: Path) -> None:
    weak = {"vulnerabilities": {"left": {"name": "left", "range": "<2", "severity": "high"}}}

    assert Report(["left <2: high"]) == audit.audit_node(tmp_path, command=program(weak, status=1))
    assert Report([]) == audit.audit_node(tmp_path, command=program({"vulnerabilities": {}}))


@pytest.mark.parametrize(
    "answer", ["", "not json", "[]", {"message": "405 Method Not Allowed"}, {"dependencies": 7}, {"vulnerabilities": 7}]
)
def test_registry_without_response_is_not_clean(answer: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, run in (
        ("python", lambda: audit.audit_python(FILE, command=program(answer))),
        ("node", lambda: audit.audit_node(tmp_path, command=program(answer))),
    ):
        with pytest.raises(NotChecked):
            run()
        assert Report([]) == audit.run_audit(name, run)

    assert ["python: not checked", "node: not checked"] == [":".join(line.split(":")[:2]) for line in capsys.readouterr().out.splitlines()]


def test_skipped_packages_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    audit.run_audit("a.txt", lambda: Report([], unchecked=3))

    assert "no known vulnerability" not in (output := capsys.readouterr().out)
    assert "not checked: 3 packages" in output


def test_auditor_is_pinned_and_run_by_uv() -> None:
    assert (str(Path(sys.executable).with_name("uv")), "==") == (audit.PIP_AUDIT[0], audit.PIP_AUDIT[-1].removeprefix("pip-audit")[:2])
