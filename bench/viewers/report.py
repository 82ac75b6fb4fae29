"""What a run of viewers found, as Markdown and JSON. Knows looks and samples, measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .process import FIRST, GROWTH, MB, Sample, allowed, growth
from .viewer import Look

MEDIAN, P95 = 0.5, 1.5
"""Seconds within which a cached view is to be drawn, at the median and at the 95th percentile."""
REST = 35.0
"""The session of a closed tab, with three open files, is kept for half a minute (.streamlit/config.toml), and let go of
when the next tab comes: only so many seconds after the viewers are gone threads and files can be judged."""
SPARE = 6
"""Threads and files that may be there for a moment."""
SHOWN = 20


@dataclass(frozen=True)
class Found:
    """A whole run. `said`: lines of the server's log that speak of a failure; `left`: sessions, threads and open files
    that are left after the viewers are gone."""

    looks: Sequence[Look]
    samples: Sequence[Sample]
    studies: int
    said: Sequence[str]
    left: dict[str, int]
    settings: dict[str, Any]
    machine: dict[str, Any]

    @property
    def wrong(self) -> list[str]:
        return [problem for look in self.looks for problem in look.wrong]

    @property
    def cached(self) -> list[float]:
        return [look.seconds for look in self.looks if look.cached]

    @property
    def failures(self) -> list[str]:
        """Why the run is no success; the times are reported, not judged."""
        out = [f"{len(self.wrong)} wrong or broken views"] if self.wrong else []
        out += [f"the server's log has {len(self.said)} failures"] if self.said else []
        grown = growth(self.samples)
        if grown is not None and grown > allowed(self.samples):
            out.append(f"memory grows by {grown / MB:.1f} MB a minute, {allowed(self.samples) / MB:.1f} are allowed")
        if self.left["sessions"]:
            out.append(f"{self.left['sessions']} sessions are left after the viewers are gone")
        settled = next((sample for sample in self.samples if sample.at >= FIRST), None)
        if settled is not None and self.settings["rest"] > REST:
            # what the first minute opened may stay open; the viewers' connections may not
            may_be = {"threads": settled.threads + SPARE, "files": settled.files - self.settings["viewers"] + SPARE}
            out += [f"{self.left[name]} {name} are left" for name in may_be if self.left[name] > may_be[name]]
        return out


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def markdown(found: Found) -> str:
    """The result for people."""
    asked, cached = found.settings, found.cached
    per_second = len(found.looks) / max(asked["seconds"], 1.0)
    lines = [
        "# Many viewers",
        "",
        f"{asked['viewers']} viewers, each a websocket session of its own, each clicking every {asked['every']:g} s"
        f"{' on average, at random' if asked['random'] else ''} for {asked['minutes']:g} minutes against one server "
        f"process; {asked['studies']} of them run{'s' if asked['studies'] == 1 else ''} studies meanwhile "
        f"({found.studies} came to their end). {len(found.looks)} views, {per_second:.1f} a second. "
        f"{found.machine['processor']}, {found.machine['cores']} cores.",
        "",
        f"* wrong or broken views: **{len(found.wrong)}**; failures in the server's log: **{len(found.said)}**",
        f"* cached views ({len(cached)}): median **{quantile(cached, 0.5):.2f} s** (target {MEDIAN:g}), 95th "
        f"percentile **{quantile(cached, 0.95):.2f} s** (target {P95:g}), longest {quantile(cached, 1.0):.2f} s",
        _memory(found),
        _left(found),
        f"* processor time of the server: {_share(found.samples):.0%} of one core",
        "",
        "Seconds from the click until the script has ended and every element and every chart's data have arrived. "
        "Cached: all that the view needs had been shown to somebody before.",
        "",
        "| page | click | views | cached: n | median | p95 | longest | computed: n | median | p95 | longest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *_rows(found.looks),
    ]
    if found.failures:
        lines += ["", "## What failed", "", *(f"* {line}" for line in found.failures)]
    for title, listed in (("Wrong views", found.wrong), ("In the log", found.said)):
        if listed:
            lines += ["", f"## {title}", "", *(f"* {line[:600]}" for line in listed[:SHOWN])]
            lines += [f"* … and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
    return "\n".join(lines) + "\n"


def plain(found: Found) -> dict[str, Any]:
    """The result as JSON values."""
    return {
        "settings": found.settings, "machine": found.machine, "views": len(found.looks), "wrong": found.wrong,
        "log": list(found.said), "failures": found.failures, "studies": found.studies,
        "cached": {"n": len(found.cached), "median": quantile(found.cached, 0.5), "p95": quantile(found.cached, 0.95)},
        "growth_bytes_per_minute": growth(found.samples), "left": found.left,
        "samples": [asdict(sample) for sample in found.samples[:: max(1, len(found.samples) // 120)]],
    }  # fmt: skip


def _memory(found: Found) -> str:
    settled = [sample for sample in found.samples if sample.at >= FIRST]
    grown = growth(found.samples)
    said = f"* memory: {found.samples[0].memory / MB:.0f} MB before the first viewer"
    if settled:
        said += f", {settled[0].memory / MB:.0f} MB after the first minute, {settled[-1].memory / MB:.0f} MB at the end"
    if grown is None:
        return f"{said}; too short a time to say whether it grows"
    return (
        f"{said}; it grows by **{grown / MB:+.1f} MB** a minute after the first (allowed: {GROWTH:.0%}, "
        f"{allowed(found.samples) / MB:.1f} MB)"
    )


def _left(found: Found) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in found.left.items())
    settled = next((sample for sample in found.samples if sample.at >= FIRST), None)
    before = f" (after the first minute: {settled.threads} threads, {settled.files} files)" if settled else ""
    return f"* after the viewers were gone: {counts}{before}"


def _share(samples: Sequence[Sample]) -> float:
    first, last = samples[0], samples[-1]
    return (last.cpu - first.cpu) / max(last.at - first.at, 1e-9)


def _rows(looks: Sequence[Look]) -> list[str]:
    groups: dict[tuple[str, str], list[Look]] = {}
    for look in looks:
        groups.setdefault((look.page, look.click), []).append(look)
    lines = []
    for (page, click), mine in sorted(groups.items()):
        cells = [page, click, str(len(mine))]
        for cached in (True, False):
            seconds = [look.seconds for look in mine if look.cached == cached]
            cells.append(str(len(seconds)))
            cells += (
                [f"{statistics.median(seconds):.2f}", f"{quantile(seconds, 0.95):.2f}", f"{max(seconds):.2f}"]
                if seconds else [""] * 3
            )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines
