"""Small shared libraries that stand for the driver and NCCL, compiled from C: no tests here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CUDA = Path(__file__).parents[1] / "rust" / "cuda"
COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler (cc)")

#: What the driver's functions do here, where it is more than to answer 0.
DRIVER = {
    "cuDriverGetVersion": "int cuDriverGetVersion(int *v) { *v = 12040; return 0; }",
    "cuDeviceGetCount": "int cuDeviceGetCount(int *n) { *n = 2; return 0; }",
    "cuDeviceGet": "int cuDeviceGet(int *d, int i) { *d = i; return 0; }",
    "cuDeviceGetName": """int cuDeviceGetName(char *name, int length, int d) {
        for (int i = 0; i < length; i++) name[i] = 'x'; return 0; }""",
    "cuDeviceGetUuid": """int cuDeviceGetUuid(char *uuid, int d) {
        for (int i = 0; i < 16; i++) uuid[i] = i; return 0; }""",
    "cuDeviceGetAttribute": """int cuDeviceGetAttribute(int *value, int a, int d) {
        *value = a == 75 ? 9 : a == 115 ? d : 0; return 0; }""",
    "cuGetErrorName": """int cuGetErrorName(int code, const char **text) {
        *text = code == 100 ? "CUDA_ERROR_NO_DEVICE" : 0; return code != 100; }""",
    "cuGetErrorString": """int cuGetErrorString(int code, const char **text) {
        *text = code == 100 ? "no CUDA-capable device is detected" : 0; return code != 100; }""",
}

#: NCCL's, likewise. The start checks the config that it is handed, and answers 4 if that is wrong.
NCCL = {
    "ncclGetVersion": "int ncclGetVersion(int *v) { *v = 21703; return 0; }",
    "ncclGetErrorString": 'const char *ncclGetErrorString(int code) { return "in words"; }',
    "ncclGetLastError": 'const char *ncclGetLastError(void *c) { return "the last one"; }',
    "ncclCommInitRankConfig": """
        struct id { char bytes[128]; };
        struct config { long size; unsigned magic, version; int blocking, cga, min, max; char *net; };
        int ncclCommInitRankConfig(void **c, int size, struct id id, int rank, struct config *config) {
            *c = c;
            int none = -2147483647 - 1;
            int right = config->size == sizeof *config && config->magic == 0xcafebeef &&
                config->version == 21700 && config->blocking == 0 && config->cga == none &&
                config->min == none && config->max == none && config->net == 0;
            return right && id.bytes[0] == 7 && id.bytes[127] == 7 ? 7 : 4; }""",
    "ncclCommGetAsyncError": "int ncclCommGetAsyncError(void *c, int *code) { *code = 0; return 0; }",
    "ncclCommAbort": """#include <stdio.h>
        int ncclCommAbort(void *c) { puts("aborted"); fflush(stdout); return 0; }""",
    "ncclCommDestroy": """#include <stdio.h>
        int ncclCommDestroy(void *c) { puts("destroyed"); fflush(stdout); return 0; }""",
}


def driver_symbols() -> list[str]:
    """The functions of the driver that the package needs, as its source lists them."""
    source = (CUDA / "libcuda.rs").read_text()
    return re.findall(r'^    "(cu\w+)",$', source.partition("SYMBOLS")[2].partition("];")[0], re.MULTILINE)


def nccl_symbols() -> list[str]:
    """The functions of NCCL that the package needs."""
    table = (CUDA / "nccl" / "table.rs").read_text()
    return [*re.findall(r'= "(nccl\w+)":', table), "ncclGetErrorString"]


def fake_driver(folder: Path, *, without: str = "", **changed: str) -> Path:
    """A driver with two devices; ``without`` leaves a function out, and ``changed`` replaces bodies."""
    file = _library(folder / "libcuda.so.1", driver_symbols(), {**DRIVER, **changed}, without)
    (folder / "libcuda.so").symlink_to(file)  # the name that is tried first, lest a real driver be found
    return file


def fake_nccl(folder: Path, *, without: str = "", **changed: str) -> Path:
    """An NCCL 2.17.3 whose communicators start, and end, at once."""
    return _library(folder / "libnccl.so.2", nccl_symbols(), {**NCCL, **changed}, without)


def _library(file: Path, names: list[str], bodies: dict[str, str], without: str) -> Path:
    names = [name for name in dict.fromkeys([*names, *bodies]) if name != without]
    source = file.with_suffix(".c")
    source.write_text("\n".join(bodies.get(name, f"int {name}() {{ return 0; }}") for name in names))
    command = [str(COMPILER), "-shared", "-fPIC", "-w", f"-Wl,-soname,{file.name}", "-o", file, source]
    subprocess.run(command, check=True, timeout=60)
    return file
