"""A viewer who runs studies: starts one on the Study page, watches it to its end, looks at what it found, starts the
next. Knows the Study page only."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from .places import STUDY
from .screen import Screen
from .tab import Stuck, Tab
from .viewer import Look

FACTS = 64
"""Facts that a study keeps: enough for a verdict, few enough that several studies end."""


@dataclass
class Scientist:
    """See the module. `ended`: what the page said of every study that came to its end, by its seed."""

    number: int
    url: str
    facts: int = FACTS
    ended: dict[int, str] = field(default_factory=dict)
    _seed: int = 0
    _running: bool = False
    _tab: Tab | None = None

    @property
    def screen(self) -> Screen:
        assert self._tab is not None
        return self._tab.screen

    async def arrive(self) -> Look:
        """Open the page, and start the first study."""
        return await self._look("link", self._begin)

    async def click(self) -> Look:
        """Look how the study is; where it ended, start the next one."""
        if self._running and not self.screen.computing:
            text = self.screen.text
            if "Verdict:" not in text:
                return await self._look("watch", self._reopen)
            self.ended[self._seed] = text
            self._seed += 1
            self._running = False
        return await self._look("watch", self._pass) if self._running else await self._look("start", self._begin)

    async def leave(self) -> None:
        """Close the tab; the study goes on."""
        if self._tab is not None:
            await self._tab.close()

    async def _look(self, name: str, act) -> Look:  # noqa: ANN001 - a coroutine function
        begun = time.perf_counter()
        try:
            await act()
            problems = list(self.screen.problems)
        except Stuck as error:
            problems = [*self.screen.problems, str(error)]
        if problems:
            await self.leave()
            self._tab = None
            self._running = False
        told = tuple(f"viewer {self.number}, Study by {name}: {problem}" for problem in problems)
        return Look(self.number, STUDY, name, time.perf_counter() - begun, False, told, time.monotonic())

    async def _pass(self) -> None:
        pass

    async def _reopen(self) -> None:
        """What was found is read in the background; the page says so and waits."""
        said = re.sub(r"\s+", " ", self.screen.text)[:300]
        if "read" not in said and "Reading" not in said:
            raise Stuck(f"the study ended without a verdict: {said}")

    async def _begin(self) -> None:
        await self.leave()
        self._tab = Tab(self.url)
        await self._tab.open(STUDY)
        for label, value in (("n", self.facts), ("seed", self._seed)):
            field_ = self.screen.widget("number_input", label=label)
            if field_ is None:
                raise Stuck(f"the form has no field {label}")
            await self._tab.change(field_, double_value=float(value))
        button = self.screen.widget("button", label="Start the study")
        if button is None or button.proto.disabled:
            raise Stuck("the study cannot be started")
        await self._tab.press(button, settled=False)
        self._running = True
