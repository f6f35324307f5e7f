"""The notebooks without what is optional: each runs to its end, and says what is missing. (With everything,
nbmake runs them as they are.)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

# Runs the cells of a notebook in a plain IPython shell in which some modules are not to be found. Every form
# that a notebook could show of a value is made.
RUN = """
import json, sys
from importlib.machinery import PathFinder

class Hides(PathFinder):
    @classmethod
    def find_spec(cls, name, *args):
        return None if name in hidden else super().find_spec(name, *args)

path, *hidden = sys.argv[1:]
sys.meta_path = [Hides if finder is PathFinder else finder for finder in sys.meta_path]
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance(history_load_length=0)
shell.display_formatter.active_types = shell.display_formatter.format_types
for cell in json.load(open(path, encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"]), store_history=False).raise_error()
assert not set(hidden) & set(sys.modules)
"""

# What each says in place of what it cannot do.
SAYS = {
    "1_schedules_by_eye": [],
    "2_what_a_bubble_costs": ["anywidget is missing. pip install 'dualpipe_rs[notebook]'"],
    "3_train_predict_measure": ["PyTorch is missing. pip install 'dualpipe_rs[torch]'"],
    "4_bring_your_own_schedule": ["matplotlib is missing. pip install 'dualpipe_rs[plot]'"],
}


@pytest.mark.parametrize("name", SAYS)
def test_a_notebook_runs_without_what_is_optional(name: str, tmp_path: Path) -> None:
    hidden = ["torch", "matplotlib", "anywidget", "ipywidgets"]
    command = [sys.executable, "-c", RUN, str(NOTEBOOKS / f"{name}.ipynb"), *hidden]
    ran = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout, ran.stdout  # IPython goes on where a value cannot be shown
    for words in SAYS[name]:
        assert words in ran.stdout, ran.stdout


def test_all_notebooks_are_here() -> None:
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_a_notebook_is_saved_with_what_a_host_can_show(name: str) -> None:
    path = NOTEBOOKS / f"{name}.ipynb"
    assert path.stat().st_size < 600_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    shown = [output.get("data", {}) for cell in code for output in cell["outputs"]]
    assert any("image/svg+xml" in data for data in shown)
    assert not any("application/vnd.jupyter.widget-view+json" in data for data in shown)
