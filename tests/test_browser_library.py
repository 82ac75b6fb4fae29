"""The Library page in a real Chromium: opened cold by link, a fact ticked, a list made of it; an upload too large."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from playwright.sync_api import expect
from served import SLOW, serve, settled

from cache.fact_lists import FactLists
from core.fact_lists import FactListDesk
from core.requests import Fact

pytestmark = pytest.mark.browser

FACTS = [Fact("The capital of {} is", name, "a", "b", case_id=i) for i, name in enumerate(("Aa", "Bb <b>", "Bb c"))]


def test_a_cold_link_shows_the_list_and_a_ticked_fact_becomes_another(tmp_path, new_page):
    desk = FactListDesk(FactLists(tmp_path / "home" / "store.duckdb"))
    desk.put("mine", FACTS)
    with serve(tmp_path) as server:
        page = new_page()
        page.goto(server.link("Library", facts="mine", search="bb"))  # the first request that this server gets
        settled(page, 0)
        expect(page.locator('[data-testid="stException"]')).to_have_count(0)
        expect(page.get_by_text("2 of 3 facts. Tick rows")).to_be_visible()
        table = page.locator('[data-testid="stDataFrame"] canvas').first.bounding_box()
        page.mouse.click(table["x"] + 22, table["y"] + 52)  # the tick box of the first row
        expect(page.get_by_role("link", name="Open on the Trace page")).to_be_visible(timeout=SLOW)
        page.get_by_role("button", name="To a list: 1 ticked").click()
        page.get_by_label("Name", exact=True).fill("another <i>")
        page.get_by_label("Name", exact=True).press("Enter")
        page.get_by_role("button", name="Make the list").click()
        expect(page.get_by_text("Kept 1 fact as “another <i>”.")).to_be_visible(timeout=SLOW)
        expect(page).to_have_url(re.compile("facts=another"))
        assert parse_qs(urlsplit(page.url).query) == {"facts": ["another <i>"]}
    assert desk.get("another <i>") == (FACTS[1],)


def test_an_upload_of_300_mb_is_refused_by_the_field_and_by_the_server(tmp_path, new_page):
    large, small = tmp_path / "large.csv", tmp_path / "small.csv"
    with large.open("wb") as file:
        file.truncate(LARGE)
    small.write_text("prompt,subject,true\nThe capital of {} is,France,Paris\n")
    with serve(tmp_path) as server:
        page = new_page()
        page.goto(server.link("Library"))
        settled(page, 0)
        page.get_by_role("button", name="Upload").click()
        field = page.locator('[data-testid="stFileUploader"]').first
        field.locator("input").set_input_files(large)
        expect(field.get_by_text(re.compile("must be .*50.*MB"))).to_be_visible(timeout=SLOW)
        with page.expect_request(lambda request: request.method == "PUT") as sent:
            field.locator("input").set_input_files(small)  # the way that an upload takes; then a large one the same way
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        assert _put(sent.value.url, sent.value.all_headers()) == 413
        assert process.memory_info().rss - before < LARGE / 2  # it was not taken in
        expect(page.locator('[data-testid="stException"]')).to_have_count(0)


LARGE = 300_000_000


def _put(url: str, headers: dict[str, str]) -> int:
    """The status that `LARGE` bytes get which are sent piece by piece, without saying before how many they are."""
    parts = urlsplit(url)
    wanted = {name: value for name, value in headers.items() if name in ("cookie", "x-xsrftoken")}
    boundary = "one-part"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="f"; filename="l.csv"\r\n\r\n'.encode()

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(LARGE // 1_000_000):
            yield b"a" * 1_000_000
        yield f"\r\n--{boundary}--\r\n".encode()

    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=SLOW / 1000)
    with contextlib.closing(connection):
        with contextlib.suppress(ConnectionError):  # the server may hang up before all is sent
            connection.request(
                "PUT", parts.path, pieces(), wanted | {"Content-Type": f"multipart/form-data; boundary={boundary}"},
                encode_chunked=True,
            )  # fmt: skip
        return connection.getresponse().status
