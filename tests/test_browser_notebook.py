"""Notebook 2 in JupyterLab in a real browser: a slider moves the figure and the number.

Skipped where Chromium, its driver, selenium or JupyterLab are not installed; ``make browser-test`` installs
the latter two.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, VIEW, chromium, errors, hovered, point_at, until

pytest.importorskip("selenium")
pytest.importorskip("jupyterlab")
if not (CHROMIUM and DRIVER):
    pytest.skip("Chromium and its driver are not installed", allow_module_level=True)

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab over the notebooks; its processes end with the test."""
    root = tmp_path / "notebooks"
    root.mkdir()
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        (root / notebook.name).write_bytes(notebook.read_bytes())
    # All cells stay in the page, however far it is scrolled.
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')
    dirs = {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
    dirs |= {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    server = subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                "--port=0",
            ),
            *(f"--ServerApp.root_dir={root}", "--IdentityProvider.token=", "--LabApp.news_url=None"),
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        env={**os.environ, **dirs, "IPYTHONDIR": str(tmp_path / "ipython"), "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        found = (re.search(r"(http://127\.0\.0\.1:\d+)/lab", line) for line in server.stdout)
        yield next(match[1] for match in found if match)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def run_all_cells(driver: Any) -> None:
    def menu(kind: str, words: str) -> Any:
        items = driver.find_elements("css selector", kind)
        return next((item for item in items if item.text.startswith(words)), None)

    until(lambda: driver.find_elements("css selector", ".jp-Notebook .jp-Cell"))
    until(lambda: driver.find_elements("css selector", "[data-status=idle]"))
    until(lambda: menu(".lm-MenuBar-item", "Run")).click()
    until(lambda: menu(".lm-Menu-item", "Run All Cells")).click()

    def all_have_run() -> bool:
        prompts = driver.execute_script(
            "return [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"
        )
        return bool(prompts) and all(re.fullmatch(r"\[\d+\]:", prompt) for prompt in prompts)

    until(all_have_run)
    until(lambda: driver.find_elements("css selector", "[data-status=idle]"))


def test_a_slider_moves_the_figure_and_the_number(lab: str) -> None:
    from selenium.webdriver.common.keys import Keys

    with chromium(1400, 1600) as driver:
        driver.get(f"{lab}/lab/tree/2_what_a_bubble_costs.ipynb")
        run_all_cells(driver)
        until(lambda: driver.execute_script(f"return {VIEW.replace('.view', '?.view?.drawn')}"))
        length = driver.execute_script(f"return {VIEW}.length")
        # The output that holds the picture, and what is written in it.
        output = driver.execute_script(
            "return document.querySelector('.dualpipe-rs').closest('.jp-OutputArea-output')"
        )
        words = output.text
        slider = output.find_element("css selector", ".noUi-handle")
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
        slider.click()
        for _ in range(3):
            slider.send_keys(Keys.ARROW_RIGHT)
        until(lambda: driver.execute_script(f"return {VIEW}.length") != length)
        until(lambda: output.text != words)
        canvas = output.find_element("css selector", ".dualpipe-rs canvas")
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        assert "forward of microbatch 0, stage 0" in hovered(driver, canvas, *point_at(driver, 0.1, 0))
        before = driver.execute_script(f"return {VIEW}.to")
        driver.execute_script(f"{VIEW}.root.focus()")
        driver.find_element("css selector", ".dualpipe-rs").send_keys("+")
        until(lambda: driver.execute_script(f"return {VIEW}.to") < before)
        driver.find_element("css selector", ".dualpipe-rs").send_keys(Keys.ARROW_LEFT)
        assert errors(driver) == []
