"""What is read out of a failed load's words."""

from __future__ import annotations

import time

import pytest

from appliance.sandbox import lacking
from appliance.sandbox.runtimes import RUNTIMES, names


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (
            "libmkl_rt.so.2: cannot open shared object file: No such file or directory",
            "libmkl_rt.so.2",
        ),
        (
            "m: error while loading shared libraries: libA+.so.1: cannot open shared object file",
            "libA+.so.1",
        ),
        (
            "unable to load shared object 'a.so':\n  libb.so: cannot open shared object file",
            "libb.so",
        ),
        ("Fiddle::DLError: /opt/x/libc.so.6.1: cannot open shared object file", "libc.so.6.1"),
    ],
)
def test_a_shared_library_is_named_whoever_says_it(said: str, name: str) -> None:
    for runtime in names():
        lack = lacking.in_fault(runtime, kind="raised", missing="", detail=said)
        assert lack
        assert lack.name == name
        assert said in lack.detail
    last = said.splitlines()
    found = lacking.in_last_words(lacking.CODE_NOT_STARTED, ["before", *last, "after"])
    assert found
    assert found.name == name
    for code in (0, 1, 126, None):
        assert lacking.in_last_words(code, last) is None


@pytest.mark.parametrize("runtime", names())
def test_a_part_is_called_as_its_language_does(runtime: str) -> None:
    lack = lacking.in_fault(runtime, kind="import", missing="a.b", detail="said")
    assert lack
    assert lack.detail == (
        f"The model needs {RUNTIMES[runtime].part} 'a.b', which is not installed: said"
    )
    assert lack.hint
    assert lack.problem(("x",)).extensions == {"stderr": ["x"], "missing": "a.b"}


def test_other_failures_lack_nothing() -> None:
    assert lacking.in_fault("node18", kind="raised", missing="x", detail="Error: x") is None
    assert lacking.in_fault("node18", kind="import", missing="", detail="Error: x") is None
    assert lacking.in_fault("nothing", kind="import", missing="x", detail="Error: x") is None
    assert lacking.in_last_words(lacking.CODE_NOT_STARTED, []) is None


def test_long_words_take_no_time() -> None:
    started = time.process_time()
    for text in ("a.so" * 500, "." * 2000, "/" * 2000, "x.so.1.so" * 200 + ": cannot open"):
        lacking.in_fault("cpp", kind="raised", missing="", detail=text)
        lacking.in_last_words(lacking.CODE_NOT_STARTED, [text] * 200)
    assert time.process_time() - started < 1
