"""What pictures and traces take: to write a file, its size, and in a browser the first paint and a frame of
a pan.

    python bench/pictures.py

The browser's part needs Chromium and selenium (`make browser-test` says how) and is left out without them.
Frames are drawn without a GPU, by the browser's software canvas.
"""

from __future__ import annotations

import gzip
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dualpipe_rs as dp
from dualpipe_rs._core import Picture
from dualpipe_rs.drawing.block import block

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import CHROMIUM, DRIVER, VIEW, chromium, until

RUNS = 7
SIZES = [("dualpipe", 8, 20), ("dualpipev", 64, 600)]


def median_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pages = [files(Path(folder), *size) for size in SIZES]
        try:
            import selenium  # noqa: F401
        except ModuleNotFoundError:
            print("\nno selenium: the browser's part is left out")
        else:
            if CHROMIUM and DRIVER:
                frames(pages)
            else:
                print("\nno Chromium: the browser's part is left out")


def files(folder: Path, name: str, ranks: int, microbatches: int) -> Path:
    timeline = dp.schedule(name, ranks, microbatches).simulate(dp.Costs(overlap=2.4, p2p=0.1))
    print(f"\n{name} {ranks} x {microbatches}, {len(timeline.spans):,} spans:\n")
    print("| file | ms | kB |\n| --- | ---: | ---: |")
    for suffix in ("svg", "html", "png", "json", "pftrace"):
        path = folder / f"{name}.{suffix}"
        taken = median_ms(lambda path=path: timeline.save(path))
        print(f"| .{suffix} | {taken:.1f} | {path.stat().st_size / 1e3:.0f} |")
    picture = Picture([timeline])
    seen = median_ms(lambda: Picture([timeline]))
    packed = median_ms(lambda: gzip.compress(block(picture), 6))
    print(f"\nOf .html, {seen:.1f} ms finds what there is to see, and {packed:.1f} ms packs it.")
    return folder / f"{name}.html"


def frames(pages: list[Path]) -> None:
    heads = ["page", "first paint", "drawn", "frame of all", "frame of a pan in a tenth", "bare frame"]
    print(f"\nIn Chromium, ms:\n\n| {' | '.join(heads)} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with chromium(1400, 1000) as driver:
        for page in pages:
            print(f"| {page.name} | {' | '.join(f'{ms:.1f}' for ms in timed(driver, page))} |")


def timed(driver: Any, page: Path) -> list[float]:
    """Medians, in ms. The bare frame clears a canvas of the same size and fills a rectangle in each row."""
    loads = []
    for _ in range(RUNS):
        driver.get(page.as_uri())
        until(
            lambda: driver.execute_script(
                "return window.drawnAt && performance.getEntriesByName('first-contentful-paint').length"
            )
        )
        loads.append(
            driver.execute_script(
                "return [performance.getEntriesByName('first-contentful-paint')[0].startTime, window.drawnAt]"
            )
        )
    of_all, of_pan, bare = driver.execute_script(f"""
        const view = {VIEW};
        // Reading a pixel back has the frame finished.
        const g = view.canvas.getContext("2d");
        const median = (work) => {{
            const times = [];
            for (let run = 0; run < 21; run++) {{
                const start = performance.now();
                work(run);
                g.getImageData(0, 0, 1, 1);
                times.push(performance.now() - start);
            }}
            return times.sort((a, b) => a - b)[10];
        }};
        const all = median(() => view.drawNow());
        view.move(view.length * 0.4, view.length / 10);
        const pan = median((run) => {{ view.pan((run % 2 ? -1 : 1) * view.length / 200); view.drawNow(); }});
        const bare = median(() => {{
            g.clearRect(0, 0, view.canvas.width, view.canvas.height);
            const place = view.places[0];
            for (let rank = 0; rank < view.picture.panels[0].ranks; rank++) {{
                g.fillRect(view.plot.left, place.rows + rank * place.height, view.plot.width, place.height);
            }}
        }});
        return [all, pan, bare];
    """)
    paint, drawn = (statistics.median(column) for column in zip(*loads, strict=True))
    return [paint, drawn, of_all, of_pan, bare]


if __name__ == "__main__":
    main()
