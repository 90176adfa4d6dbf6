"""Tests of the generated pages in docs/reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.checks import reference
from deploy.checks.reference import PAGES, Command
from models.config.setting_errors import env_name
from models.config.settings import Settings


def test_settings_page_describes_every_setting() -> None:
    page = reference.settings_page()

    assert [] == [name for name in Settings.model_fields if f"| `{env_name(name)}` |" not in page]


def test_pages_contain_no_value_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: page() for name, page in PAGES.items()}
    monkeypatch.setenv("NOWSERVING_PORT", "9999")

    assert before == {name: page() for name, page in PAGES.items()}


def test_a_changed_page_is_reported_until_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    reference.main(Command.WRITE)
    (tmp_path / "errors.md").write_text("old")

    assert (1, 0, 0) == (reference.main(Command.CHECK), reference.main(Command.WRITE), reference.main(Command.CHECK))
