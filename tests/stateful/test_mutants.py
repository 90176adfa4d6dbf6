"""The mutants of tests/stateful/mutants.py match the current code."""

from __future__ import annotations

import pytest

from tests.stateful.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks)
def test_mutant_changes_text_that_occurs_once_in_its_file(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")

    assert [1] * len(mutant.changes) == [text.count(was) for was, _ in mutant.changes]
