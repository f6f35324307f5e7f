"""The wheel as a user gets it: small, the package alone, linked to no CUDA library, and good from elsewhere.

It takes a release build, so it runs with LONG=1 alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from families import LONG

ROOT = Path(__file__).parent.parent
MEGABYTE = 1_000_000
#: What every Linux with glibc has.
SYSTEM = re.compile(r"(libc|libm|libgcc_s|libpthread|libdl|ld-linux[\w-]*)\.so\.\d+")

pytestmark = [
    pytest.mark.skipif(not LONG, reason="LONG=1"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF"),
    pytest.mark.timeout(1200),
]

#: A step with arrays of NumPy, which imports neither torch nor anything of the sources.
PROGRAM = """
import sys
import numpy as np
import dualpipe_rs as dp

assert "site-packages" in dp.__file__, dp.__file__
assert not any((entry or ".").startswith({root!r}) for entry in sys.path), sys.path
assert isinstance(dp.cuda.is_available(), bool)
assert str(dp.cuda.diagnose())
dp.schedule("dualpipe", num_ranks=4, num_microbatches=8).verify()

schedule = dp.schedule("1f1b", 2, 4)
seen = []

def forward(stage, microbatch, x):
    return np.full(3, float(microbatch)) if x is None else x + 1

def backward(stage, microbatch, gradient):
    if gradient is not None:
        seen.append((microbatch, gradient.tolist()))
    return np.full(3, 10.0 * microbatch)

timeline = dp.Executor(schedule, forward=forward, backward=backward).step()
assert sorted(seen) == [(m, [10.0 * m] * 3) for m in range(4)], seen
assert len(timeline.spans) == 16
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "maturin", "build", "--release", "--locked", "--out", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def extension(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".so"))
        return Path(files.extract(name, tmp_path_factory.mktemp("extension")))


def test_it_is_small(wheel: Path) -> None:
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / MEGABYTE:.2f} MB")
    assert size < 5 * MEGABYTE


def test_it_holds_the_package_and_nothing_else(wheel: Path, extension: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
    strange = [name for name in names if not re.match(r"dualpipe_rs(/|-[\d.]+\.dist-info/)", name)]
    assert not strange
    assert "dualpipe_rs/py.typed" in names
    assert not [name for name in names if "fake" in name]
    assert b"fakecuda" not in extension.read_bytes(), "the software device is for tests alone"


def test_it_is_linked_to_the_system_alone(extension: Path) -> None:
    """CUDA's libraries are looked for when they are asked for, so the wheel loads where there are none."""
    shown = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True, check=True)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", shown.stdout)
    print(needed)
    assert needed
    assert [name for name in needed if not SYSTEM.fullmatch(name)] == []


def test_it_works_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """Installed without its sources in sight. NumPy is linked to, as there may be no network."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--quiet", str(wheel)], check=True, timeout=120)
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in Path(np.__file__).parents[1].glob("numpy*"):
        (packages / folder.name).symlink_to(folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = str(packages)
    for arguments in (["-c", PROGRAM.format(root=str(ROOT))], ["-m", "dualpipe_rs", "doctor"]):
        done = subprocess.run(
            [str(python), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    assert "driver" in done.stdout, "the doctor has told of what is here"
