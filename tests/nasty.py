"""Input that nobody meant, for property tests (hypothesis): texts of every kind, numbers, values of JSON."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# the gate tries few; HYPOTHESIS_PROFILE=thorough tries many
_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
settings.register_profile("gate", max_examples=25, **_COMMON)
settings.register_profile("thorough", max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
few = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))
"""Decorator of every property test."""

LONG = 100_000
TAG = "<script>alert(1)</script>"
SAMPLES = (
    "", " ", "\n", "\x00", "\x1b[31m", "\r", "a\tb", "{}", "{}{}", "{} {} {}", "The capital of {} is", "{0}", "{x!r}",
    "שלום עולם", "\u202eabc\u202c", "مرحبا بالعالم", "می\u200cخواهم", "👩\u200d👩\u200d👧", "🏴\U000e0067\U000e007f",
    "e\u0301\u0302\u0303",
    "Z͑ͫ̓ͪ̂ͫ̽", "\ufeffx", "\u2028", "\u2029", "\u00a0", "\u3000", "\ufffe", "\U0010ffff", "\U00020000", "\ue000",
    "\ud800", "x\udfff", TAG, "</script><img src=x onerror=alert(1)>", "$(id)`id`", "'; DROP TABLE traces; --",
    "../../../../etc/passwd", "/etc/passwd", "C:\\con", "file:///etc/passwd", "=1+1", "@SUM(A1)", "+1", "-1", "%",
    "%7C", "a|b", "a|b|", "|", "**b** _i_ [l](javascript:alert(1)) :material/home: $x$ `c`", "#", "&", "&amp;", '"',
    "\\", "a,b;c",
    "nan", "-inf", "inf", "1e400", "-0", "0", "1", "2", "17", "1.5", "1_0", "0x10", "٣", "９", "9" * 5000,
    "L1E2", "l01e002",
    "shared", "all", "last", "demo", "replace", "x" * LONG, "{}" * (LONG // 2), "\u0301" * LONG, "%" * 4000,
)  # fmt: skip
every_plane = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF), max_size=12)
"""Surrogates are among its characters."""
texts = st.one_of(st.sampled_from(SAMPLES), every_plane, st.tuples(every_plane, st.sampled_from(SAMPLES)).map("".join))
numbers = st.one_of(
    st.integers(), st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([10**400, -(10**400), -0.0, 1e-320]),
    st.booleans(), st.none(), texts,
)  # fmt: skip
"""What may stand where a number belongs."""
json_values = st.recursive(
    st.one_of(numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
