"""The Prefer header (RFC 7240), in every form that it allows."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.prefer import Preferences, parse
from tests.support.time_limits import least, seconds

TOKEN = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=12)
SPACE = st.text(" \t", max_size=3)


def prefer(*headers: str) -> Preferences:
    return parse(headers, max_wait_s=60)


@pytest.mark.parametrize(
    "header",
    [
        "respond-async", "Respond-ASYNC", " respond-async ", "respond-async;", "respond-async; a; b=c", 'respond-async;a="x, wait=1"',
        "return=minimal, respond-async", "handling=lenient; foo=\"bar\",respond-async", ",, respond-async,", 'respond-async=""',
        'x="a \\" , b", respond-async', "respond-async, respond-async",
    ],
)  # fmt: skip
def test_an_answer_without_waiting_is_asked_for(header: str) -> None:
    assert Preferences(True) == prefer(header)


@pytest.mark.parametrize(
    "header",
    ["", ",", "wait=10", "respond-asynchronously", "respond-async=yes", '"respond-async"', "return=respond-async", "respond async", "=",
     'x="respond-async', 'x=", respond-async', "a;respond-async", "respond-async=no, respond-async"],
)  # fmt: skip
def test_everything_else_changes_nothing(header: str) -> None:
    assert Preferences() == prefer(header)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("respond-async, wait=10", 10), ("wait=10,respond-async", 10), ("respond-async,WAIT = 7", 7), ('respond-async, wait="5"', 5),
        ('respond-async, wait="\\5"', 5), ("respond-async, wait=0", 0), ("respond-async, wait=3, wait=4", 3),
        ("respond-async, wait=61", 60), ("respond-async, wait=" + "9" * 500, 60), ("respond-async, wait=000000000012; why=not", 12),
        ("respond-async, wait=-1", None), ("respond-async, wait=1.5", None), ("respond-async, wait", None), ("respond-async, wait=x", None),
        ("respond-async, wait=, wait=4", 4), ("respond-async; wait=4", None),
    ],
)  # fmt: skip
def test_how_long_an_answer_is_waited_for(header: str, wait_s: int | None) -> None:
    assert Preferences(True, wait_s) == prefer(header)


def test_several_headers_count_as_one() -> None:
    assert Preferences(True, 3) == prefer("wait=3", "return=minimal", "respond-async")


@pytest.mark.parametrize("header", ["respond-async", "respond-async, wait=0", "respond-async, wait=10"])
def test_preference_applied_repeats_the_preference(header: str) -> None:
    assert header == prefer(header).applied()


@given(
    before=st.lists(st.tuples(TOKEN.filter(lambda name: name.lower() not in ("respond-async", "wait")), TOKEN | st.text(max_size=8))),
    wait=st.integers(0, 60),
    spaces=SPACE,
    cut=st.booleans(),
)
def test_wait_is_found_beside_other_preferences(before: list[tuple[str, str]], wait: int, spaces: str, cut: bool) -> None:
    others = [f'{name}{spaces}={spaces}"{_escaped(value)}"' for name, value in before]
    parts = [*others, "respond-async" + (f"{spaces};{spaces}x=1" if cut else ""), f"wait{spaces}={spaces}{wait}"]

    assert Preferences(True, wait) == prefer(f"{spaces},{spaces}".join(parts))
    assert Preferences(True, wait) == prefer(*parts)


@given(st.text(st.sampled_from('respond-async,wait=5;" \\\t'), max_size=60))
def test_nothing_that_is_sent_makes_it_fail(header: str) -> None:
    assert prefer(header).respond_async in (True, False)


@pytest.mark.parametrize("header", ["a" + "; " * 4000 + "(", 'a="' + "\\" * 8000, "a=" + '"b' * 4000, "a ;" + " " * 8000 + "="])
def test_no_header_takes_long_to_read(header: str) -> None:
    assert least(lambda: seconds(lambda: prefer(header), clock=time.thread_time), below=0.5) < 0.5


def _escaped(value: str) -> str:
    return "".join(f"\\{char}" if char in '"\\' else char for char in value if char not in "\n\r")
