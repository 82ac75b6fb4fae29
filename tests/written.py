"""Numbers as the pages have to write them, for tests that compare with a value of their own."""

from __future__ import annotations

import re


def written(value: float, digits: int = 3, *, sign: bool = True) -> str:
    """With a real minus, and no sign where nothing but zeros is shown."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return re.sub(r"^[+-](?=[0.]+$)", "", text).replace("-", "−")
