"""Putting values into self-contained HTML, SVG and PNG: the chart libraries, JSON in a script, where it comes from.

Knows no results; whatever a person typed stays text wherever it lands.
"""

from __future__ import annotations

import functools
import html
import json
import struct
import zlib
from typing import Any


@functools.lru_cache(maxsize=1)
def bundle() -> str:
    """The JavaScript of Vega, Vega-Lite and vega-embed, for the inside of a script element; defines `vegaEmbed`."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def in_script(value: Any) -> str:
    """JSON that cannot end a script element, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def one_line(text: str) -> str:
    """Text without line breaks, as comment lines and titles need it."""
    return " ".join(text.splitlines())


def xml(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return "".join(
        c for c in text if c in "\t\n\r" or c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff"
    )


def drawable(spec: Any) -> Any:
    """A chart's spec without the characters that XML cannot hold: the converter ends the whole process over one."""
    if isinstance(spec, str):
        return xml(spec)
    if isinstance(spec, dict):
        return {name: drawable(value) for name, value in spec.items()}
    return [drawable(value) for value in spec] if isinstance(spec, list | tuple) else spec


def svg_with(text: str, about: Any) -> bytes:
    """An SVG file with `about` as JSON in its `metadata` element."""
    found = html.escape(json.dumps(about, ensure_ascii=False), quote=False)
    start = text.index(">", text.index("<svg")) + 1
    return f"{text[:start]}<metadata>{xml(found)}</metadata>{text[start:]}".encode()


def png_with(data: bytes, about: Any) -> bytes:
    """A PNG file with `about` as JSON in a text chunk under the name ExpertScope."""
    text = b"ExpertScope\0\0\0\0\0" + json.dumps(about, ensure_ascii=False).encode()
    chunk = struct.pack(">I", len(text)) + b"iTXt" + text + struct.pack(">I", zlib.crc32(b"iTXt" + text))
    end = data.rindex(b"IEND") - 4
    return data[:end] + chunk + data[end:]
