"""A headless Chromium, driven by selenium. Debian's packages ``chromium`` and ``chromium-driver`` are looked
for; no browser is ever downloaded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
#: The script of the page that finds the one canvas in it.
VIEW = "document.querySelector('.dualpipe-rs').view"


@contextmanager
def chromium(width: int = 1200, height: int = 900) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--window-size={width},{height}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def until(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    """The first true value of a condition; AssertionError when none has come in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come about")


def errors(driver: Any) -> list[str]:
    """What the page's console holds of errors."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def addresses(driver: Any) -> set[str]:
    """All that the page asked for."""
    import json

    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {url for url in asked if not url.startswith(("data:", "blob:"))}


def interval(driver: Any) -> tuple[float, float]:
    left, right = driver.execute_script(f"return [{VIEW}.from, {VIEW}.to]")
    return left, right


def point_at(driver: Any, time: float, rank: int, panel: int = 0) -> tuple[int, int]:
    """Where a time of a rank's row is, from the middle of the canvas."""
    place = f"""
        const view = {VIEW}, panel = view.picture.panels[{panel}], place = view.places[{panel}];
        const box = view.canvas.getBoundingClientRect();
        return [view.scale(panel).x({time}) - box.width / 2,
                place.rows + ({rank} + 0.5) * place.height - box.height / 2];
    """
    x, y = driver.execute_script(place)
    return round(x), round(y)


def hovered(driver: Any, canvas: Any, x: int, y: int) -> str:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).move_to_element_with_offset(canvas, x, y).perform()
    tip = driver.find_element("css selector", ".dualpipe-rs .tip")
    return tip.text if tip.is_displayed() else ""
