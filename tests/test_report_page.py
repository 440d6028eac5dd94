"""The page of a report, in a real Chromium: it draws, zooms, saves, escapes, asks for nothing, and fits a phone."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from metrics.report import report
from tests.chromium_browser import chromium
from tests.run_logs import document, write

EVIL = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">'
# What a chart shows of the time axis, from its own model.
EXTENT = """(chart) => {
  const zoom = chart.getOption().dataZoom[0];
  return [zoom.startValue, zoom.endValue];
}"""
VISIBLE = """() => [...document.querySelectorAll(".chart")].map((element) => {
  const canvas = element.querySelector("canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colors = new Set();
  for (let at = 0; at < pixels.length; at += 4) if (pixels[at + 3]) colors.add(pixels.slice(at, at + 3).join());
  return colors.size;
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opener]:
    """Open the page of some logs; it fails when the page logs an error or asks for anything but itself."""
    wrong: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(*logs: dict[str, Any], width: int = 1200, dark: bool = False, phone: bool = False) -> Page:
        paths = [write(tmp_path / f"run{number}.json", log) for number, log in enumerate(logs)]
        html = report(paths).html
        assert Path(html).stat().st_size < 3_000_000
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            has_touch=phone,
            is_mobile=phone,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.on("requestfinished", lambda request: asked.append(request.url))
        page.goto(Path(html).as_uri())
        page.wait_for_selector(".chart canvas")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def charts_in(page: Page) -> list[str]:
    found: list[str] = page.eval_on_selector_all(".chart", "all => all.map((one) => one.dataset.chart)")
    return found


def place_in(page: Page, chart: str, share: float) -> tuple[float, float]:
    """Return a place in a chart, so far from its left edge."""
    page.locator(chart).scroll_into_view_if_needed()
    box = page.locator(chart).bounding_box()
    assert box
    return box["x"] + box["width"] * share, box["y"] + box["height"] / 2


def extents(page: Page) -> list[list[float]]:
    found: list[list[float]] = page.evaluate(f"[...charts.values()].filter((c) => c.group === 'time').map({EXTENT})")
    return found


def test_every_series_is_drawn(opened: Opener) -> None:
    page = opened(document())
    expected = {"bytes", "files", "stages", "cpu", "cores", "memory", "disk", "operations", "busy", "flight", "process"}
    assert set(charts_in(page)) == expected | {"requests", "sizes"}
    assert min(page.evaluate(VISIBLE)) > 10
    assert "store latency" in page.inner_text(".verdict")


def test_hovering_shows_the_values_in_all_charts(opened: Opener) -> None:
    page = opened(document())
    page.mouse.move(*place_in(page, '[data-chart="bytes"]', 0.5))
    expect(page.locator("body")).to_contain_text("11 MB/s")
    expect(page.locator("body")).to_contain_text("100 per second")


def test_dragging_zooms_all_charts_and_a_button_shows_all_again(opened: Opener) -> None:
    page = opened(document(), document(10))
    assert extents(page) == [[0, 20]] * len(extents(page))
    chart = '[data-run="0"][data-chart="cpu"]'
    page.mouse.move(*place_in(page, chart, 0.4))
    page.mouse.down()
    page.mouse.move(*place_in(page, chart, 0.6), steps=5)
    page.mouse.up()
    zoomed = extents(page)
    assert len(zoomed) > 20
    assert 5 < zoomed[0][0] < zoomed[0][1] < 15
    assert all(each == pytest.approx(zoomed[0], abs=0.2) for each in zoomed)
    page.click("#whole")
    assert extents(page) == [[0, 20]] * len(zoomed)


@pytest.mark.parametrize("chart", ["stages", "sizes"])
def test_any_chart_is_saved_as_png_and_svg(opened: Opener, tmp_path: Path, chart: str) -> None:
    page = opened(document())
    card = page.locator(".card", has=page.locator(f'[data-chart="{chart}"]'))
    for kind in ("png", "svg"):
        with page.expect_download() as waiting:
            card.locator(f'[data-save="{kind}"]').click()
        waiting.value.save_as(tmp_path / f"saved.{kind}")
        assert waiting.value.suggested_filename.endswith(f".{kind}")
    head = (tmp_path / "saved.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (1800, 720)
    svg = (tmp_path / "saved.svg").read_text()
    assert svg.startswith("<svg")
    assert svg.count("<path") > 3
    assert "run0.json" in svg


def test_whatever_a_log_says_is_text(opened: Opener) -> None:
    log = document(failed=3, failures=[[EVIL, EVIL], ["<script>", "\u2028"], ["\udcff", "&amp;"]])
    log["run"].update(host=EVIL, server=EVIL, device=EVIL, version=EVIL, settings={EVIL: EVIL}, started=EVIL)
    page = opened(log)
    assert page.title() == "run0.json - Blobark"
    assert page.locator("img").count() == 0
    failures = page.inner_text("body")
    assert EVIL in failures
    assert "<script>" in failures
    assert "\\udcff" in failures
    assert "&amp;" in failures
    assert min(page.evaluate(VISIBLE)) > 10


def test_a_log_with_an_evil_name_is_text(browser: Browser, tmp_path: Path) -> None:
    name = "<script>alert(1)<&.json"
    html = report([write(tmp_path / name, document())], html=tmp_path / "x.html").html
    page = browser.new_page()
    page.goto(Path(html).as_uri())
    page.wait_for_selector(".chart canvas")
    assert page.inner_text("h1") == name
    assert page.evaluate("data.runs[0].label") == name
    page.close()


def test_dark_and_light_differ_and_follow_the_system(opened: Opener) -> None:
    page = opened(document(), dark=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(20, 23, 27)"
    ink = "charts.values().next().value.getOption().textStyle.color"
    assert page.evaluate(ink) == "#e8eaed"
    page.emulate_media(color_scheme="light")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    assert page.evaluate(ink) == "#1b1f24"
    assert min(page.evaluate(VISIBLE)) > 10


def test_it_fits_a_phone(opened: Opener) -> None:
    page = opened(document(), document(10, failed=1, failures=[["a/" * 300, "b" * 300]]), width=360, phone=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    widths = page.eval_on_selector_all(".chart", "all => all.map((one) => one.getBoundingClientRect().width)")
    assert min(widths) > 280
    assert min(page.evaluate(VISIBLE)) > 10


def test_runs_lie_side_by_side_on_one_scale(opened: Opener) -> None:
    slow = document(30, stages={"held": 2.0, "request": 0.2})
    page = opened(document(), slow, document(5))
    boxes = [page.locator(f'[data-run="{run}"][data-chart="stages"]').bounding_box() for run in range(3)]
    assert len({box["y"] for box in boxes if box}) == 1
    assert len({box["x"] for box in boxes if box}) == 3
    tops = page.evaluate("data.runs.map((run) => run.charts.stages.top)")
    assert tops == [pytest.approx(2.31, rel=0.05)] * 3
    assert extents(page) == [[0, 30]] * len(extents(page))


def test_a_long_run_stays_small(opened: Opener) -> None:
    page = opened(*(document(5_000) for _ in range(3)))
    assert page.evaluate("Math.max(...data.runs.map((run) => run.t_s.length))") <= 1000
    assert page.evaluate("data.runs[0].charts.files.lines[0][2][500]") == 100


def test_a_run_of_two_samples_and_nothing_measured_is_shown(opened: Opener) -> None:
    log = document(1)
    log["stages"] = log["summary"] = None
    assert "killed, or still going on" in opened(log).inner_text("body")
