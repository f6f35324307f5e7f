"""Finding the driver and NCCL, and saying what is missing: without a GPU, with broken files and fakes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from asked import VARIABLE, found, run, skip_with_gpu
from fake_libraries import driver_symbols, fake_driver, fake_nccl, nccl_symbols, needs_compiler

import dualpipe_rs as dp


@pytest.fixture
def no_driver() -> None:
    skip_with_gpu()


# Without a GPU


@pytest.mark.usefixtures("no_driver")
def test_what_is_missing_is_said_in_words() -> None:
    diagnosis = dp.cuda.diagnose()
    assert dp.cuda.is_available() is False
    assert diagnosis.devices == []
    assert diagnosis.driver.reason
    assert diagnosis.driver.reason in str(diagnosis)
    assert "everything else of this package runs without a GPU" in diagnosis.advice[0]
    for sentence in diagnosis.advice:
        assert sentence in str(diagnosis)


def test_a_diagnosis_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        dp.cuda.diagnose().nccl.path = "elsewhere"  # type: ignore[misc]


def test_eight_threads_at_once() -> None:
    def ask(_: int) -> tuple[bool, str]:
        return dp.cuda.is_available(), str(dp.cuda.diagnose())

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(ask, range(64)))) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.usefixtures("no_driver")
def test_a_forked_process_can_ask() -> None:
    code = """
import os
import dualpipe_rs as dp

dp.cuda.is_available()
child = os.fork()
if child == 0:
    os._exit(dp.cuda.is_available())
assert os.waitpid(child, 0)[1] == 0
"""
    answer = run(code)
    assert answer.returncode == 0, answer.stderr


def test_a_path_can_hold_anything() -> None:
    code = "import sys, dualpipe_rs as dp; sys.path += [b'x', None, '\\0', 'a.zip', '']; dp.cuda.diagnose()"
    answer = run(code)
    assert answer.returncode == 0, answer.stderr


def test_it_imports_no_torch() -> None:
    code = "import sys, dualpipe_rs as dp; dp.cuda.diagnose(); print({'torch', 'numpy'} & {*sys.modules})"
    assert run(code).stdout == "set()\n"


# Files that are not NCCL


def test_the_variable_names_no_file(tmp_path: Path) -> None:
    nccl = found(**{VARIABLE: str(tmp_path / "libnccl.so.2")})["nccl"]
    assert "No such file" in nccl["reason"]
    assert VARIABLE in nccl["reason"]
    assert len(nccl["looked"]) == 1  # what is named is used, or nothing


def test_the_variable_names_a_folder_without_it(tmp_path: Path) -> None:
    reason = found(**{VARIABLE: str(tmp_path)})["nccl"]["reason"]
    assert f"libnccl.so.2 in the folder {tmp_path}, which {VARIABLE} names" in reason


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_the_variable_names_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "libnccl.so.2").write_bytes(content)
    diagnosis = found(**{VARIABLE: str(tmp_path)})
    assert "file too short" in diagnosis["nccl"]["reason"]
    assert VARIABLE in diagnosis["advice"][-1]


def test_the_variable_is_empty() -> None:
    assert "an empty name" in found(**{VARIABLE: ""})["nccl"]["reason"]


def test_a_library_that_is_not_nccl() -> None:
    other = dp._core.__file__
    diagnosis = found(**{VARIABLE: str(other)})["nccl"]
    assert "it is not NCCL" in diagnosis["reason"]
    assert set(diagnosis["missing_symbols"]) == set(nccl_symbols())


@needs_compiler
def test_a_function_that_nccl_lacks_is_named(tmp_path: Path) -> None:
    fake_nccl(tmp_path, without="ncclCommFinalize")
    nccl = found(**{VARIABLE: str(tmp_path)})["nccl"]
    assert nccl["missing_symbols"] == ["ncclCommFinalize"]
    assert "lacks ncclCommFinalize" in nccl["reason"]


@needs_compiler
def test_an_old_nccl_is_refused(tmp_path: Path) -> None:
    fake_nccl(tmp_path, ncclGetVersion="int ncclGetVersion(int *v) { *v = 2708; return 0; }")
    nccl = found(**{VARIABLE: str(tmp_path)})["nccl"]
    assert "is NCCL 2.7.8; the least is 2.14.0" in nccl["reason"]


# A driver that is not whole


@needs_compiler
def test_a_function_that_the_driver_lacks_is_named(tmp_path: Path) -> None:
    fake_driver(tmp_path, without="cuMemPoolCreate")
    diagnosis = found(LD_LIBRARY_PATH=str(tmp_path))
    assert diagnosis["available"] is False
    assert diagnosis["driver"]["missing_symbols"] == ["cuMemPoolCreate"]
    assert diagnosis["driver"]["path"] == str((tmp_path / "libcuda.so.1").resolve())
    assert "lacks cuMemPoolCreate" in diagnosis["text"]


@needs_compiler
def test_a_driver_without_a_device(tmp_path: Path) -> None:
    fake_driver(tmp_path, cuInit="int cuInit(unsigned flags) { return 100; }")
    diagnosis = found(LD_LIBRARY_PATH=str(tmp_path))
    words = "cuInit failed: CUDA_ERROR_NO_DEVICE (100), no CUDA-capable device is detected"
    assert diagnosis["driver"]["reason"] == words
    assert diagnosis["driver"]["version"] == [12, 4]
    assert "nvidia-smi" in diagnosis["advice"][0]
    assert diagnosis["available"] is False


@needs_compiler
def test_a_code_that_nobody_knows(tmp_path: Path) -> None:
    fake_driver(tmp_path, cuInit="int cuInit(unsigned flags) { return 4711; }")
    diagnosis = found(LD_LIBRARY_PATH=str(tmp_path))
    assert diagnosis["driver"]["reason"] == "cuInit failed: an unknown code (4711)"


@needs_compiler
def test_devices_are_listed(tmp_path: Path) -> None:
    fake_driver(tmp_path)
    fake_nccl(tmp_path)
    diagnosis = found(LD_LIBRARY_PATH=str(tmp_path), **{VARIABLE: str(tmp_path)})
    assert diagnosis["available"] is True
    first, second = diagnosis["devices"]
    assert first["index"] == 0
    assert set(first["name"]) == {"x"}  # a name that fills its room has no end of its own
    assert first["compute_capability"] == [9, 0]
    assert (first["memory_pools"], second["memory_pools"]) == (False, True)
    assert first["uuid"] == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert diagnosis["nccl"]["version"] == [2, 17, 3]
    assert "device 0 has no memory pools" in diagnosis["advice"][0]
    assert len(driver_symbols()) == 28


# The command


def test_doctor() -> None:
    code = "import sys; from dualpipe_rs.__main__ import main; sys.exit(main(['doctor']))"
    answer = run(code)
    assert answer.returncode == 0, answer.stderr
    for word in ("Python", "dualpipe_rs", "numpy", "torch", "driver", "NCCL", "advice"):
        assert word in answer.stdout


def test_doctor_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
from dualpipe_rs.__main__ import main
sys.exit(main(["doctor"]))
"""
    answer = run(code)
    assert answer.returncode == 0, answer.stderr
    assert "torch is missing, to train: pip install dualpipe_rs[torch]" in answer.stdout


def test_doctor_without_numpy() -> None:
    """Timelines need it: that is broken, GPU or not."""
    code = """
import sys
sys.modules["numpy"] = None
from dualpipe_rs.__main__ import main
sys.exit(main(["doctor"]))
"""
    answer = run(code)
    assert answer.returncode == 1, answer.stdout
    assert "cannot be simulated here" in answer.stderr
