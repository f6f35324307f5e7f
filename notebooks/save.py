"""Runs the notebooks of this folder and saves them with their outputs, as `make notebooks` does.

    python notebooks/save.py [part of a name ...]

What is saved is what a code host can show: pictures as SVG, text, tables. A widget lives in its kernel alone,
so it is left out, and with it what has no other form (a progress bar).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"
MOST_BYTES = 600_000


def main(parts: list[str]) -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        if parts and not any(part in path.stem for part in parts):
            continue
        begun = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=120,
            resources={"metadata": {"path": str(FOLDER)}},
            record_timing=False,
            coalesce_streams=True,  # else lines are parted as they happened to come
        )
        client.execute()
        lasting(notebook)
        text = nbformat.writes(notebook) + "\n"
        refuse(path.name, text)
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {time.perf_counter() - begun:.1f} s, {len(text.encode()) / 1000:.0f} kB")


def lasting(notebook: nbformat.NotebookNode) -> None:
    """Leaves what is the same on every machine and without a kernel."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if shown(output)]


def shown(output: nbformat.NotebookNode) -> bool:
    """Takes the widget out of an output; whether anything to look at is left."""
    data = output.get("data", {})
    if data.pop(WIDGET, None) is None:
        return True
    return bool(data.keys() - {"text/plain"})


def refuse(name: str, text: str) -> None:
    """Stops before something is saved that should not be."""
    for path in (FOLDER.parent, Path.home()):
        if f"{path}/" in text:
            sys.exit(f"{name}: an output holds a path of this machine; nothing was saved")
    if len(text.encode()) > MOST_BYTES:
        sys.exit(f"{name}: {len(text.encode())} bytes are more than {MOST_BYTES}; nothing was saved")


if __name__ == "__main__":
    main(sys.argv[1:])
