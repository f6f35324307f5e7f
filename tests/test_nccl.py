"""NCCL: the real one of torch's wheel, as far as it goes without a device, and a fake's communicators."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path

import pytest
from asked import DIAGNOSE, VARIABLE, found, run, skip_with_gpu, tried, wheel
from fake_libraries import fake_driver, fake_nccl, nccl_symbols, needs_compiler

import dualpipe_rs as dp
from dualpipe_rs.errors import DeviceError, UsageError

_ID = bytes([7] * 128)


@pytest.fixture
def no_driver() -> None:
    skip_with_gpu()


# The real NCCL and NVRTC


def test_the_real_nccl_has_every_function() -> None:
    file = wheel("nccl", "libnccl.so.2")
    nccl = found(**{VARIABLE: str(file)})["nccl"]
    assert nccl["reason"] is None
    assert nccl["path"] == str(file.resolve())
    assert (2, 14) <= tuple(nccl["version"]) < (3, 0)
    library = ctypes.CDLL(str(file))
    version = ctypes.c_int()
    assert library.ncclGetVersion(ctypes.byref(version)) == 0
    assert nccl["version"] == [version.value // 10_000, version.value % 10_000 // 100, version.value % 100]
    assert len(nccl_symbols()) == 15
    for name in nccl_symbols():
        assert getattr(library, name)


def test_the_real_nccl_is_found_without_a_word() -> None:
    file = wheel("nccl", "libnccl.so.2")
    assert found()["nccl"]["path"] == str(file.resolve())
    folder = found(**{VARIABLE: str(file.parent)})
    assert folder["nccl"]["path"] == str(file.resolve())


def test_a_copy_that_is_loaded_already_comes_first(tmp_path: Path) -> None:
    file = wheel("nccl", "libnccl.so.2")
    code = f"""
import ctypes, sys
ctypes.CDLL({str(file)!r})
sys.path = [entry for entry in sys.path if "site-packages" not in entry]
{DIAGNOSE}"""
    answer = run(code)
    assert json.loads(answer.stdout)["nccl"]["path"] == str(file.resolve()), answer.stderr


def test_real_unique_ids_differ() -> None:
    file = wheel("nccl", "libnccl.so.2")
    code = "from dualpipe_rs import _core; print(*(_core.nccl_unique_id().hex() for _ in range(3)))"
    answer = run(code, **{VARIABLE: str(file), "NCCL_SOCKET_IFNAME": "lo"})
    ids = answer.stdout.split()
    assert len(set(ids)) == 3, answer.stderr
    assert {len(each) for each in ids} == {256}


@pytest.mark.usefixtures("no_driver")
def test_a_communicator_without_a_driver_is_an_error() -> None:
    answer = tried(1)
    assert "driver" in answer.stdout
    assert "was not found" in answer.stdout or "failed" in answer.stdout


@needs_compiler
@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize("size", [1, 2])
def test_the_real_nccl_refuses_a_driver_that_is_none(tmp_path: Path, size: int) -> None:
    """It has to be NCCL's own refusal that comes back, as words and not as a crash or a hang."""
    file = wheel("nccl", "libnccl.so.2")
    fake_driver(tmp_path)
    answer = tried(size, LD_LIBRARY_PATH=str(tmp_path), **{VARIABLE: str(file)})
    assert answer.stdout.startswith("nccl"), answer.stdout
    assert " failed: nccl" in answer.stdout


def test_the_real_nvrtc_loads() -> None:
    library = ctypes.CDLL(str(wheel("", "libnvrtc.so.*")))
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    assert major.value >= 11


def test_the_real_header_has_our_numbers() -> None:
    header = wheel("nccl", "nccl.h").read_text()
    config = re.search(r"typedef struct ncclConfig_v\w+ \{(.*?)\}", header, re.DOTALL)
    assert config is not None
    fields = re.findall(r"(\w+);", config[1])[:8]
    assert fields == [
        "size",
        "magic",
        "version",
        "blocking",
        "cgaClusterSize",
        "minCTAs",
        "maxCTAs",
        "netName",
    ]
    for line in ("NCCL_API_MAGIC 0xcafebeef", "NCCL_CONFIG_UNDEF_INT INT_MIN", "NCCL_UNIQUE_ID_BYTES 128"):
        assert f"#define {line}\n" in header
    for number in ("ncclSuccess = 0", "ncclInProgress = 7", "ncclTimeout = 8", "ncclUint8 = 1"):
        assert number in re.sub(" +", " ", header)


# Communicators of the fake NCCL


@pytest.fixture
def fakes(tmp_path: Path) -> dict[str, str]:
    fake_driver(tmp_path)
    return {"LD_LIBRARY_PATH": str(tmp_path), VARIABLE: str(tmp_path)}


@needs_compiler
def test_a_communicator_starts_and_ends(tmp_path: Path, fakes: dict[str, str]) -> None:
    """The fake refuses a config that is not laid out as nccl.h's."""
    fake_nccl(tmp_path)
    assert tried(2, **fakes).stdout == "destroyed\nstarted and ended\n"


@needs_compiler
def test_a_start_that_does_not_come_to_an_end_is_aborted(tmp_path: Path, fakes: dict[str, str]) -> None:
    fake_nccl(
        tmp_path,
        ncclCommGetAsyncError="int ncclCommGetAsyncError(void *c, int *code) { *code = 7; return 0; }",
    )
    words = "starting a communicator took longer than 50ms; look at whether every rank reached the same point"
    assert tried(2, 0.05, **fakes).stdout == f"aborted\n{words}\n"


@needs_compiler
def test_a_result_that_nobody_knows_is_an_error(tmp_path: Path, fakes: dict[str, str]) -> None:
    fake_nccl(
        tmp_path,
        ncclCommGetAsyncError="int ncclCommGetAsyncError(void *c, int *code) { *code = 99; return 0; }",
    )
    words = "ncclCommGetAsyncError failed: an unknown code (99), in words: the last one"
    assert tried(2, **fakes).stdout == f"aborted\n{words}\n"


@needs_compiler
def test_an_nccl_without_last_words_does(tmp_path: Path, fakes: dict[str, str]) -> None:
    fake_nccl(
        tmp_path, without="ncclGetLastError", ncclCommFinalize="int ncclCommFinalize(void *c) { return 6; }"
    )
    words = "ncclCommFinalize failed: ncclRemoteError (6), in words"
    assert tried(2, **fakes).stdout == f"aborted\n{words}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((_ID, 2, 2, 1.0), "rank 2 of 2; a communicator has ranks 0 to its size - 1"),
        ((_ID, 0, 0, 1.0), "rank 0 of 0"),
        ((b"short", 1, 0, 1.0), "unique_id has 5 bytes; it has 128"),
        ((_ID, 1, 0, float("nan")), "timeout is NaN"),
        ((_ID, 1, 0, -1.0), "timeout is -1"),
    ],
)
def test_wrong_arguments(arguments: tuple[bytes, int, int, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        dp._core.nccl_try(*arguments)


def test_the_exception_is_of_the_family() -> None:
    assert issubclass(DeviceError, dp.Error)
    assert issubclass(DeviceError, RuntimeError)
