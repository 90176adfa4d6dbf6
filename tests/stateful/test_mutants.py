"""The mutants of tests/stateful/mutants.py fit the code as it is."""

from __future__ import annotations

import pytest

from tests.stateful.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks)
def test_each_mutant_changes_text_that_stands_once_in_its_file(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")

    assert [1] * len(mutant.changes) == [text.count(was) for was, _ in mutant.changes]
