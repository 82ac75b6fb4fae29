"""How every quantity is written for people: one format each, on pages, in charts and in reports. (The terminal's tables
are there to be parsed too, and have their own.)

Knows numbers, no results. A real minus sign; what rounds to zero has no sign; what is missing is –, never 0 or nan.
Axes of charts have marks of their own spacing, thresholds that a person typed are shown as typed (`typed`).
"""

from __future__ import annotations

import datetime
import math
from typing import Any

NONE = "–"
"""What stands for a missing value."""


def is_missing(value: Any) -> bool:
    """Whether there is no number: None, NaN, pandas' NA, or an infinity."""
    if value is None:
        return True
    try:
        return not math.isfinite(value)
    except TypeError:  # pandas' NA is no number
        return True


def number(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number with so many decimals; `sign`: also above 0."""
    if is_missing(value):
        return NONE
    text = f"{abs(value):.{digits}f}"
    if not any(figure in text for figure in "123456789"):
        return text
    return f"{'−' if value < 0 else '+' if sign else ''}{text}"


def _general(value: Any, form: str) -> str:
    """A number in one of Python's own formats."""
    return NONE if is_missing(value) else format(value, form).replace("-", "−")


def unknown(value: Any) -> str:
    """A number of which no quantity is known: three decimals, or one figure of what is smaller than these."""
    if is_missing(value) or value == 0 or abs(value) >= 0.0005:
        return number(value)
    return _general(value, ".1g")


def logits(value: Any) -> str:
    """Anything measured against another run, in logits: contrast, drop, rescue, specificity, direct part, effect."""
    return number(value, 3, True)


def logit(value: Any) -> str:
    """One token's logit, or how far something spreads in logits (no sign of its own): sd."""
    return number(value, 3)


def restoration(value: Any) -> str:
    """Mean rescue ÷ mean drop."""
    return number(value, 3)


def weight(value: Any) -> str:
    """A router weight."""
    return number(value, 3)


def norm(value: Any) -> str:
    """A norm or a ratio of norms; a median of them."""
    return number(value, 3)


def cosine(value: Any) -> str:
    """A cosine."""
    return number(value, 3, True)


def angle(value: Any) -> str:
    """Degrees."""
    return NONE if is_missing(value) else f"{number(value, 1)}°"


def small(value: Any) -> str:
    """What one of many parts gives: a neuron's write, its activation."""
    return number(value, 4, True)


def size_of_small(value: Any) -> str:
    """The same without a sign."""
    return number(value, 4)


def bits(value: Any) -> str:
    """Information or a divergence, in bits."""
    return number(value, 4)


def bits_change(value: Any) -> str:
    """A difference of bits."""
    return number(value, 4, True)


def entropy(value: Any) -> str:
    """Load entropy, a share of the largest possible."""
    return number(value, 3)


def overlap(value: Any) -> str:
    """A Jaccard index or a rank correlation."""
    return number(value, 3)


def lift(value: Any) -> str:
    """Tokens with both ÷ expected."""
    return number(value, 2)


def mean_count(value: Any) -> str:
    """A count that is a mean or an expectation: a mean rank, tokens expected."""
    return number(value, 1)


def percent(share: Any) -> str:
    """A share."""
    return NONE if is_missing(share) else f"{number(100 * share, 1)} %"


def points(change: Any) -> str:
    """A difference of two shares."""
    return NONE if is_missing(change) else f"{number(100 * change, 1, True)} points"


def progress(share: Any) -> str:
    """How much of some work is done, or of some room is taken."""
    return NONE if is_missing(share) else f"{number(100 * share, 0)} %"


def probability(p: Any) -> str:
    """A probability; what rounds to 0 or 1 without being it is said to lie beside it."""
    if is_missing(p):
        return NONE
    if 0 < p < 0.0005:
        return "<0.001"
    return ">0.999" if 0.9995 <= p < 1 else number(p, 3)


def p_value(p: Any) -> str:
    """The p of a test."""
    if is_missing(p):
        return NONE
    return "<0.0001" if 0 < p < 0.00005 else number(p, 4)


def count(n: Any) -> str:
    """How many, or which (a layer, a rank); thousands apart."""
    return _general(n, ",.0f")


def identifier(n: Any) -> str:
    """A number that only names: case_id, token id, seed."""
    return _general(n, ".0f")


def typed(value: Any) -> str:
    """What a person set: noise level, factor, threshold."""
    return _general(value, "g")


def bound(value: Any) -> str:
    """A bound of which only the size matters: the noise floor, a tolerance."""
    return _general(value, ".2g")


def rough(value: Any) -> str:
    """What has no scale of its own: σ of the noise, a routing margin."""
    return _general(value, ".3g")


def size(n_bytes: Any) -> str:
    """Bytes."""
    if is_missing(n_bytes):
        return NONE
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} {unit}" if n_bytes >= 10 or unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.0f} GB" if n_bytes >= 100 else f"{n_bytes:.1f} GB"


def parameters(n: Any) -> str:
    """Parameters of a model."""
    if is_missing(n):
        return NONE
    return f"{n / 1e9:.1f} B" if n >= 1e9 else f"{n / 1e6:.1f} M"


def duration(seconds: Any, *, about: bool = False) -> str:
    """Seconds; `about`: an estimate."""
    if is_missing(seconds):
        return NONE
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        shown = f"{seconds:.0f} s"
    else:
        shown = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"about {shown}" if about else shown


def moment(when: Any) -> str:
    """A time to the minute, UTC: from microseconds since 1970 or an ISO text (of UTC)."""
    if isinstance(when, str):
        return when.replace("T", " ")[:16] or NONE
    if is_missing(when):
        return NONE
    return datetime.datetime.fromtimestamp(when / 1e6, datetime.UTC).strftime("%Y-%m-%d %H:%M")
