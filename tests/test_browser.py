"""The canvas in a real browser: a page opened from a file.

Skipped where Chromium, its driver or selenium are not installed; ``make browser-test`` installs selenium.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, VIEW, addresses, chromium, errors, hovered, interval, point_at, until

import dualpipe_rs as dp

pytest.importorskip("selenium")
if not (CHROMIUM and DRIVER):
    pytest.skip("Chromium and its driver are not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


def opened(driver: Any, path: Path) -> Any:
    """The canvas of a page, once it is drawn."""
    driver.get(path.as_uri())
    until(lambda: driver.execute_script(f"return document.body.dataset.ready && {VIEW}.drawn"))
    return driver.find_element("css selector", ".dualpipe-rs canvas")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    timeline = dp.schedule("dualpipe", 8, 20).simulate(dp.Costs(p2p=0.25))
    timeline.save(tmp_path / "x.html")
    return tmp_path / "x.html"


def test_a_page_opens_from_a_file_and_loads_nothing(driver: Any, page: Path) -> None:
    opened(driver, page)
    assert errors(driver) == []
    assert addresses(driver) == {page.as_uri()}
    assert driver.execute_script(f"return {VIEW}.canvas.getAttribute('aria-label')").startswith(
        "dualpipe, 8 ranks"
    )


def test_a_pointer_is_told_what_it_is_over(driver: Any, page: Path) -> None:
    canvas = opened(driver, page)
    timeline = dp.schedule("dualpipe", 8, 20).simulate(dp.Costs(p2p=0.25))
    spans = timeline.spans
    pair = next(
        s
        for s in spans
        if s["rank"] == 0 and spans[(spans["rank"] == 0) & (spans["slot"] == s["slot"])].size == 2
    )
    words = hovered(driver, canvas, *point_at(driver, (pair["start"] + pair["end"]) / 2, 0))
    assert "a fused pair: forward of microbatch 7, stage 0" in words
    assert "full backward of microbatch 13, stage 7" in words
    assert f"{pair['start']:.4g} to {pair['end']:.4g}" in words
    wait = next(w for w in timeline.waits if w["cause"] == "dependency" and w["end"] - w["start"] > 0.5)
    words = hovered(driver, canvas, *point_at(driver, (wait["start"] + wait["end"]) / 2, wait["rank"]))
    assert f"rank {wait['rank']} is idle" in words
    assert "dependency of the" in words
    assert f"microbatch {wait['microbatch']}, stage {wait['stage']}" in words
    assert errors(driver) == []


def test_the_cells_are_where_their_colours_are(driver: Any, page: Path) -> None:
    """Each single action of rank 3, read off the canvas's pixels."""
    opened(driver, page)
    timeline = dp.schedule("dualpipe", 8, 20).simulate(dp.Costs(p2p=0.25))
    stages = dp.schedule("dualpipe", 8, 20).stages_of(3)
    for span in timeline.spans[timeline.spans["rank"] == 3]:
        if span["kind"] == "B":
            continue  # mostly in pairs
        chunk, kind = stages.index(span["stage"]), "FIWB".index(span["kind"])
        seen, expected = driver.execute_script(f"""
            const view = {VIEW}, panel = view.picture.panels[0], place = view.places[0];
            const x = view.scale(panel).x({span["start"]}) + 3, y = place.rows + 3 * place.height + 20;
            const ratio = window.devicePixelRatio;
            const data = view.canvas.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data;
            return [[...data].slice(0, 3), panel.rgb[2][{chunk}][{kind}]];
        """)
        assert seen == expected, span


def test_zoom_and_pan_by_wheel_drag_and_keys(driver: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys

    canvas = opened(driver, page)
    whole = interval(driver)
    ActionChains(driver).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, -300).perform()
    left, right = interval(driver)
    assert right - left < 0.6 * (whole[1] - whole[0])
    ActionChains(driver).drag_and_drop_by_offset(canvas, 200, 0).perform()
    moved = interval(driver)
    assert moved[0] < left
    assert moved[1] - moved[0] == pytest.approx(right - left)
    root = driver.find_element("css selector", ".dualpipe-rs")
    root.send_keys(Keys.ARROW_RIGHT)
    assert interval(driver)[0] > moved[0]
    root.send_keys("+")
    assert interval(driver)[1] - interval(driver)[0] < moved[1] - moved[0]
    root.send_keys("0")
    assert interval(driver) == whole
    ActionChains(driver).double_click(canvas).perform()
    assert interval(driver) == whole
    assert errors(driver) == []


def test_the_buttons(driver: Any, page: Path) -> None:
    opened(driver, page)

    def press(words: str) -> None:
        buttons = driver.find_elements("css selector", ".dualpipe-rs .bar button")
        next(button for button in buttons if button.text == words).click()

    height = driver.execute_script(f"return {VIEW}.canvas.clientHeight")
    press("memory")  # off
    until(lambda: driver.execute_script(f"return {VIEW}.canvas.clientHeight") < height)
    for words in ("causes", "critical path"):
        press(words)
    assert "idle: dependency" in driver.find_element("css selector", ".dualpipe-rs .bar").text
    before = driver.execute_script(f"return {VIEW}.isDark")
    press("light" if before else "dark")
    assert driver.execute_script(f"return {VIEW}.isDark") is not before
    press("+")
    assert interval(driver)[0] > 0
    press("all")
    assert interval(driver)[0] == 0
    assert errors(driver) == []


def test_odd_pictures_are_drawn(driver: Any, tmp_path: Path) -> None:
    """Many slots, a broken schedule, a step of no time, two timelines of other lengths."""
    schedule = dp.schedule("dualpipe", 4, 8)
    nothing = schedule.simulate(dp.Costs(forward=0.0, backward_input=0.0, backward_weight=0.0))
    broken = dp.Schedule.from_text("# name=x placement=linear ranks=2 stages=2 microbatches=1\n0B0 0F0\n1F0")
    many = dp.schedule("dualpipev", 32, 200).simulate()
    for number, seen in enumerate(([many], [broken], [nothing], [schedule, many], [nothing, broken])):
        path = tmp_path / f"{number}.html"
        seen[0].save(path, *seen[1:], causes=True, critical_path=True)
        opened(driver, path)
        for _ in range(3):
            driver.execute_script(f"{VIEW}.zoom(0.3); {VIEW}.pan({VIEW}.length / 50); {VIEW}.drawNow()")
        driver.execute_script(f"{VIEW}.setOptions({{fit: true}}); {VIEW}.drawNow()")
        assert errors(driver) == [], number
