"""How quantities are written: a real minus, no signed zero, missing as missing, one format each."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from core import formats

MISSING = (None, math.nan, np.float32("nan"), pd.NA, math.inf)
NUMBERS = (
    "number", "unknown", "logits", "logit", "restoration", "weight", "norm", "cosine", "angle", "small",
    "size_of_small", "bits", "bits_change", "entropy", "overlap", "lift", "mean_count", "percent", "points", "progress",
    "probability", "p_value", "count", "identifier", "typed", "bound", "rough", "size", "parameters", "duration",
    "moment",
)  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_missing_is_a_dash_in_every_format(name):
    form = getattr(formats, name)
    assert [form(value) for value in MISSING] == ["–"] * len(MISSING)


def test_every_format_is_tested_for_what_is_missing():
    public = {name for name, value in vars(formats).items()
              if callable(value) and not name.startswith("_") and value.__module__ == formats.__name__}  # fmt: skip
    assert public - {"is_missing"} == set(NUMBERS)


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        ("logits", 1.23456, "+1.235"), ("logits", -0.0004, "0.000"), ("logits", 0.0004, "0.000"),
        ("logits", -0.0, "0.000"),
        ("logits", -2, "−2.000"), ("logits", np.float32(-0.5), "−0.500"), ("logit", -3.25, "−3.250"),
        ("restoration", 0.5, "0.500"), ("restoration", -0.25, "−0.250"), ("restoration", -0.0001, "0.000"),
        ("percent", 0.12345, "12.3 %"), ("percent", -0.0001, "0.0 %"), ("percent", 1, "100.0 %"),
        ("points", 0.0212, "+2.1 points"), ("points", -0.0212, "−2.1 points"), ("progress", 0.456, "46 %"),
        ("probability", 0.0, "0.000"), ("probability", 0.0002, "<0.001"), ("probability", 0.0005, "0.001"),
        ("probability", 0.9996, ">0.999"), ("probability", 1.0, "1.000"), ("probability", 0.4321, "0.432"),
        ("p_value", 0.00002, "<0.0001"), ("p_value", 0.0001, "0.0001"), ("p_value", 0.0, "0.0000"),
        ("count", 1234567, "1,234,567"), ("count", -3, "−3"), ("count", np.int64(0), "0"),
        ("identifier", 12345, "12345"),
        ("typed", 3.0, "3"), ("typed", -0.5, "−0.5"), ("bound", 0.01234, "0.012"), ("rough", 0.0012345, "0.00123"),
        ("cosine", -0.5, "−0.500"), ("angle", 12.34, "12.3°"), ("small", -0.00001, "0.0000"),
        ("bits", 0.12345, "0.1235"),
        ("size", 0, "0 B"), ("size", 999, "999 B"), ("size", 1500, "1.5 kB"), ("size", 999_700, "1.0 MB"),
        ("size", 61.1e9, "61.1 GB"), ("size", 1234e9, "1,234 GB"),
        ("parameters", 30.5e9, "30.5 B"), ("parameters", 1.2e6, "1.2 M"),
        ("duration", 0.4, "under 1 s"), ("duration", 89, "89 s"), ("duration", 600, "10 min"),
        ("duration", 7200, "2.0 h"),
        ("moment", 0, "1970-01-01 00:00"), ("moment", "2026-11-21T20:50:33+00:00", "2026-11-21 20:50"),
    ],
)  # fmt: skip
def test_a_number_is_written_as_its_quantity_is(form, value, text):
    assert getattr(formats, form)(value) == text


@pytest.mark.parametrize("digits", range(5))
def test_a_number_reads_back_as_what_was_rounded(digits):
    rng = np.random.default_rng(digits)
    for value in np.concatenate([rng.normal(0, 3, 200), rng.normal(0, 10.0**-digits, 200)]):
        for sign in (False, True):
            text = formats.number(value, digits, sign)
            assert "-" not in text
            read = float(text.replace("−", "-"))
            assert read == pytest.approx(round(float(value), digits), abs=1e-12)
            assert (text[0] in "+−") == (read < 0 or (sign and read > 0))
