"""The page in a real browser: Debian's chromium, without a window, on a wide screen and a telephone, light and dark."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_runs

from orlhf_ext.commands import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.launcher,
    pytest.mark.skipif(not report_runs.DRAWS, reason=report_runs.NEEDS),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs the package playwright"),
]

#: titles of the charts that lack marks: a chart has axes even where there is nothing to draw
EMPTY = """
() => [...document.querySelectorAll(".chart")]
    .filter((one) => one.checkVisibility())
    .filter((one) => ![...one.querySelectorAll(".role-mark path, .role-mark line")].some((mark) => {
        const box = mark.getBoundingClientRect();
        return Math.max(box.width, box.height) > 1;
    }))
    .map((one) => one.closest("figure").querySelector("figcaption").textContent)
"""
#: texts of charts that are cut off at the left or right
CUT = """
() => [...document.querySelectorAll(".chart svg")].filter((one) => one.checkVisibility()).flatMap((one) => {
    const edge = one.getBoundingClientRect();
    return [...one.querySelectorAll("text")].filter((text) => {
        const box = text.getBoundingClientRect();
        return box.width > 0 && (box.left < edge.left - 1 || box.right > edge.right + 1);
    }).map((text) => `${one.closest("figure").querySelector("figcaption").textContent}: ${text.textContent}`);
})
"""
WIDER = "() => document.scrollingElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module", params=[*report_runs.KINDS, "two"])
def page_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of each kind of run, and of two runs side by side."""
    folder = tmp_path_factory.mktemp("page")
    if request.param == "two":
        runs = [report_runs.exo(folder / f"exo{seed}", seed) for seed in (0, 1)]
    else:
        runs = [report_runs.KINDS[request.param](folder / request.param)]
    out = folder / f"{request.param}.html"
    report.main([*map(str, runs), "--out", str(out)])
    return out


def opened(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    """A page when everything is drawn, and the list in which its complaints and requests are collected."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(240_000)  # a busy machine takes minutes
    bad: list[str] = []
    page.on("console", lambda message: bad.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on(
        "request", lambda request: bad.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    return page, bad


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_drawn(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page, bad = opened(browser, page_file, width, scheme)
    assert page.evaluate("() => document.querySelectorAll('.chart svg').length") >= 4
    assert page.evaluate(EMPTY) == [] and page.evaluate(CUT) == [] and not page.evaluate(WIDER)
    for details in page.query_selector_all("details > summary"):
        details.click()
    page.wait_for_function("() => [...document.querySelectorAll('.chart')].every((one) => one.querySelector('svg'))")
    assert page.evaluate(EMPTY) == [] and page.evaluate(CUT) == [] and not page.evaluate(WIDER)
    paper, ink = (page.evaluate(f"() => getComputedStyle(document.body).{key}") for key in ("backgroundColor", "color"))
    assert (sum(map(int, paper[4:-1].split(","))) > sum(map(int, ink[4:-1].split(",")))) == (scheme == "light")
    assert bad == [] and page.title() != "taken"
    page.close()


def test_the_check_for_marks_finds_an_empty_chart(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file)
    page.evaluate(
        "() => document.querySelectorAll('.chart')[0].querySelectorAll('.role-mark').forEach((one) => one.remove())"
    )
    assert page.evaluate(EMPTY) == ["Time of each stage"]
    wide = '<p style="width: 3000px">x</p>'
    page.evaluate(f"() => document.body.insertAdjacentHTML('beforeend', '{wide}')")
    assert page.evaluate(WIDER)
    page.close()


def gains(page: Any) -> list[float]:
    """The change of each shown row."""
    texts = page.eval_on_selector_all(
        ".browser:first-of-type .row h4 b:last-child", "all => all.map((one) => one.textContent)"
    )
    return [float(text) for text in texts if text[:1] in "+-0"]


def test_prompts_are_searched_filtered_sorted_and_turned_over(browser: Any, page_file: Path) -> None:
    page, bad = opened(browser, page_file)
    table = page.locator(".browser").first
    rows, count = table.locator(".row"), table.locator(".count")
    total = int(count.inner_text().rpartition(" ")[2])
    assert rows.count() == 25 and total > 25
    table.locator(".next").click()
    assert rows.count() == min(25, total - 25) and count.inner_text().startswith("26\N{EN DASH}")
    table.locator("input[type=search]").fill("ZEBRA")
    assert rows.count() == 1 and count.inner_text() == "1\N{EN DASH}1 of 1"
    table.locator("input[type=search]").fill("no such words")
    assert rows.count() == 0 and count.inner_text() == "nothing found"
    table.locator("input[type=search]").fill("")
    lower = page_file.stem == "jigsaw_rectify"
    table.locator("select[aria-label=order]").select_option("most")
    found = gains(page)
    assert len(found) >= 25 and found[:25] == sorted(found[:25], reverse=not lower)
    table.locator("select[aria-label=filter]").select_option("worse")
    left = int(count.inner_text().rpartition(" ")[2])
    assert 0 < left < total
    signs = {gain > 0 for gain in gains(page)[: min(left, 25)]}
    assert signs == {lower}
    text = rows.first.locator(".text").first
    short = text.bounding_box()["height"]
    text.click()
    assert text.bounding_box()["height"] >= short and "open" in (rows.first.get_attribute("class") or "")
    assert bad == []
    page.close()


def test_toxic_text_is_masked_until_asked_for(browser: Any, page_file: Path) -> None:
    page, bad = opened(browser, page_file)
    box = page.locator(".unmask")
    masked = page_file.stem == "jigsaw_rectify"
    assert box.count() == int(masked)
    shown = "() => [...document.querySelectorAll('.row .text')].map((one) => one.textContent).join(' ')"
    assert ("evening" in page.evaluate(shown)) != masked and ("e******" in page.evaluate(shown)) == masked
    if masked:
        box.check()
        assert "evening" in page.evaluate(shown)
        box.uncheck()
        assert "evening" not in page.evaluate(shown)
    assert bad == []
    page.close()


def test_a_mark_says_its_numbers(browser: Any, page_file: Path) -> None:
    page, bad = opened(browser, page_file)
    page.locator(".chart").first.locator(".role-mark path").first.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "time (" in page.locator("#vg-tooltip-element").inner_text()
    assert bad == []
    page.close()
