"""How long `import dualpipe_rs` takes: fresh interpreters that import it, minus fresh ones that do nothing.

    python bench/import_time.py

The two take turns, and start outside the source tree, so that it is the installed package that is timed.
The aim is under 60 ms with the files in the page cache; the first pair only fills that cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

RUNS = 20
AIM_MS = 60.0


def main() -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        pairs = [(_ms("pass", elsewhere), _ms("import dualpipe_rs", elsewhere)) for _ in range(1 + RUNS)][1:]
    bare, full = zip(*pairs, strict=True)
    low, median, high = statistics.quantiles([b - a for a, b in pairs], n=4)
    print(
        f"import dualpipe_rs: {median:.1f} ms (quartiles {low:.1f} to {high:.1f}, aim < {AIM_MS:.0f}); "
        f"medians of {RUNS}: bare interpreter {statistics.median(bare):.1f}, with the import "
        f"{statistics.median(full):.1f}"
    )


def _ms(code: str, cwd: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=cwd, check=True)
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
