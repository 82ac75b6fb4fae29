"""The colours, measured: what is told apart by colour stays apart for colour-blind eyes, scales grow darker (lighter on
dark) away from 0, and text has the contrast that WCAG 2 asks for (AA: 4.5, graphics 3).

Simulation: Machado, Oliveira, Fernandes 2009 at severity 1 (linear RGB); difference:
CIEDE2000 (Sharma, Wu, Dalal 2005).
"""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path

import numpy as np
import pytest

from core.palette import DARK, LIGHT

THEME = tomllib.loads((Path(__file__).parent.parent / ".streamlit" / "config.toml").read_text("utf-8"))["theme"]
EYES = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip
APART = {"usual": 11, "protanopia": 11, "deuteranopia": 11, "tritanopia": 7}
"""CIEDE2000; 2 is just seen side by side, the palette before this test had pairs at 5.5."""
FADED = 0.6
"""Captions, headings of tables and the like: the text's colour at this opacity."""


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2: relative luminances."""
    dark, bright = sorted(float(linear(colour) @ (0.2126, 0.7152, 0.0722)) for colour in (one, other))
    return (bright + 0.05) / (dark + 0.05)


def over(colour: str, ground: str, opacity: float) -> str:
    mixed = (opacity * int(colour[at : at + 2], 16) + (1 - opacity) * int(ground[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(value):02x}" for value in mixed)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB under D65."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    raw = np.array(to_xyz) @ rgb / (0.95047, 1.0, 1.08883)
    x, y, z = np.where(raw > 0.008856, np.cbrt(raw), 7.787 * raw + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def seen(colour: str, eyes: str) -> np.ndarray:
    return lab(np.clip(np.array(EYES[eyes]) @ linear(colour), 0, 1))


def difference(one: np.ndarray, two: np.ndarray) -> float:
    """CIEDE2000."""
    (l1, a1, b1), (l2, a2, b2) = one, two
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25**7))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    h = h1 + turn / 2 if c1 * c2 else h1 + h2
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    c, light = (c1 + c2) / 2, (l1 + l2) / 2
    cosines = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    t = 1 + sum(factor * np.cos(np.radians(times * h + by)) for factor, times, by in cosines)
    of_light = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    of_chroma, of_hue = (c2 - c1) / (1 + 0.045 * c), hue / (1 + 0.015 * c * t)
    bent = 60 * np.exp(-(((h % 360 - 275) / 25) ** 2))
    cross = -2 * np.sqrt(c**7 / (c**7 + 25**7)) * np.sin(np.radians(bent))
    return float(np.sqrt(of_light**2 + of_chroma**2 + of_hue**2 + cross * of_chroma * of_hue))


@pytest.mark.parametrize(
    ("one", "two", "wanted"),
    [  # rows 1, 9, 17 and 25 of Sharma, Wu and Dalal's test data
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ],
)
def test_the_measure_is_ciede2000(one, two, wanted):
    assert difference(np.array(one), np.array(two)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=lambda p: p.name)
def test_what_colours_tell_apart_stays_apart_for_every_eye(palette, eyes):
    names = ("low", "left", "high", "expert", "kept", "joined")
    for one, two in itertools.combinations(names, 2):
        if {one, two} != {"low", "left"}:  # both orange, never in one chart
            apart = difference(*(seen(getattr(palette, name), eyes) for name in (one, two)))
            assert apart >= APART[eyes], (one, two)


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=lambda p: p.name)
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_value_farther_from_0_is_always_darker_or_on_dark_lighter(palette, end, eyes):
    steps = [over(getattr(palette, end), palette.mid, part) for part in np.linspace(0, 1, 21)]
    lightness = np.diff([seen(colour, eyes)[0] for colour in steps])
    assert (lightness < 0).all() if palette is LIGHT else (lightness > 0).all()
    assert difference(seen(palette.low, eyes), seen(palette.high, eyes)) > 40  # the two senses


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=lambda p: p.name)
def test_text_and_marks_have_contrast(palette):
    for name in ("ink", "muted", "mark", "subject"):
        assert contrast(getattr(palette, name), palette.background) >= 4.5, name
    for name in ("low", "high", "expert", "kept", "left", "joined"):
        assert contrast(getattr(palette, name), palette.background) >= 4.45, name


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_themes_text_has_contrast_also_where_it_is_faded(name):
    theme = THEME[name]
    grounds = {theme["backgroundColor"], theme["secondaryBackgroundColor"], theme["sidebar"]["backgroundColor"]}
    for ground in grounds:
        assert contrast(over(theme["textColor"], ground, FADED), ground) >= 4.5, ground
        assert contrast(theme["primaryColor"], over(theme["primaryColor"], ground, 0.12)) >= 4.5, ground
