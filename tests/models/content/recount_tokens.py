"""Counts the fixture texts of test_tokens.py again, with the tokenizer itself, and compares the estimates with it.

`pip install bpe-openai` (75 MB, all ranks inside, no network) or `tiktoken` (it needs its ranks in TIKTOKEN_CACHE_DIR), then
`python -m tests.models.content.recount_tokens`; with `--write` the counts are stored in tests/texts/counts.json.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from models.content import token_estimate
from tests.models.content.test_token_estimate import COUNTS, ENCODINGS, TEXTS, fixture


def main() -> None:
    """Prints a line for each text and encoding."""
    encodings = {name: _library().get_encoding(name) for name in ENCODINGS}
    counts = {name: {of: len(known.encode(fixture(name))) for of, known in encodings.items()} for name in sorted(COUNTS)}
    for name, exact in counts.items():
        for of, count in exact.items():
            estimate = token_estimate.estimate_text(fixture(name), model=ENCODINGS[of])
            known = "" if COUNTS[name].get(of) == count else f"  counts.json has {COUNTS[name].get(of)}"
            print(f"{name:24} {of:12} {count:6} estimated {estimate:6} {estimate / count - 1:+7.1%}{known}")
    if "--write" in sys.argv:
        (TEXTS / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")


def _library() -> Any:
    for name in ("bpe_openai", "tiktoken"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise SystemExit("No tokenizer is installed: pip install bpe-openai")


if __name__ == "__main__":
    main()
