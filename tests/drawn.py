"""What Vega draws of a Vega-Lite spec, mark by mark."""

from __future__ import annotations

from typing import Any

import vl_convert

Group = tuple[str | None, str, list[dict]]
"""Role (mark, axis-label, legend-title, ...), mark type, items."""


def groups(spec: dict[str, Any]) -> list[Group]:
    """All groups of marks, in the order of drawing."""
    found: list[Group] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "marktype" in node and "items" in node:
                found.append((node.get("role"), node["marktype"], node["items"]))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(vl_convert.vegalite_to_scenegraph(spec))
    return found


def items(spec: dict[str, Any], kind: str, *, role: str = "mark") -> list[dict]:
    """All items of a mark type in a role."""
    return [item for its, marktype, group in groups(spec) if (its, marktype) == (role, kind) for item in group]
