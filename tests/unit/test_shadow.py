"""How replies compare: by value, numbers within a millionth."""

from __future__ import annotations

import pytest

from appliance.shadow import likeness


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (b"plain", b"plain", "equal"),
        (b"plain", b"other", "different"),
        (b'{"a":1,"b":[2]}', b'{ "b": [2.0], "a": 1 }', "equal"),
        (b"[0.1, 0.2]", b"[0.10000000001, 0.2]", "close"),
        (b"[0.1, 0.2]", b"[0.1001, 0.2]", "different"),
        (b"[0]", b"[1e-12]", "close"),
        (b"[1]", b"[true]", "different"),
        (b"[1]", b'["1"]', "different"),
        (b"[1]", b"[1, 1]", "different"),
        (b'{"a":1}', b'{"b":1}', "different"),
        (b"null", b"[]", "different"),
        (b'{"a":"x","p":0.5}', b'{"p":0.50000000001,"a":"x"}', "close"),
        (b"[" * 100_000, b"[" * 99_999, "different"),
        (b"[NaN]", b"[nan]", "different"),
        (b"1" * 2_000_000, b"1" * 2_000_001, "different"),
    ],
)
def test_replies_compare(one, other, found):
    assert likeness(one, other) == found
    assert likeness(other, one) == found
