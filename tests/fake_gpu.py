"""Arrays and kernels on the software device (rust/fakecuda), by ctypes: what CuPy would be on a real one.

A process that uses them was started with the library's folder on ``LD_LIBRARY_PATH`` (:func:`environment`).
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WIDTH = 4


def environment(folder: Path) -> dict[str, str]:
    """Builds the library, and links it under its names in ``folder``; what its users are started with."""
    subprocess.run(["cargo", "build", "--quiet", "--locked", "-p", "fakecuda"], cwd=ROOT, check=True)
    built = ROOT / "target" / "debug" / "libfakecuda.so"
    for name in ("libcuda.so", "libcuda.so.1", "libnccl.so.2"):
        (folder / name).symlink_to(built)
    paths = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    nccl = str(folder / "libnccl.so.2")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": paths,
        "DUALPIPE_NCCL_LIBRARY": nccl,
        "PYTHONPATH": str(ROOT / "tests"),
    }


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    library.fake_report.restype = ctypes.c_char_p
    library.fake_axpb.argtypes = [ctypes.c_uint64] * 4 + [ctypes.c_double] * 3
    library.fake_set_hop.argtypes = [ctypes.c_double]
    library.fake_settle.argtypes = [ctypes.c_double]
    library.fake_reset.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64]
    library.fake_fault.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int]
    library.fake_hang.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
    return library


def call(name: str, *arguments: Any) -> None:
    code = getattr(_library(), name)(*arguments)
    assert code == 0, f"{name}: {code}"


def reset(devices: int, seed: int = 1) -> None:
    _library().fake_reset(devices, seed, 0, 10)


def fault(call: str, nth: int, code: int) -> None:
    _library().fake_fault(call.encode(), nth, code)


def hang(kind: str, nth: int) -> None:
    _library().fake_hang(kind.encode(), nth)


def release() -> None:
    _library().fake_release()


def report_waits() -> int:
    return int(_library().fake_host_waits())


def report() -> dict[str, Any]:
    assert _library().fake_settle(20.0) == 0
    answer: dict[str, Any] = json.loads(_library().fake_report())
    return answer


class Device:
    """A device made current in this thread, with a stream."""

    def __init__(self, index: int) -> None:
        self.index = index
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        call("cuInit", 0)
        call("cuDeviceGet", ctypes.byref(handle), index)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        call("cuCtxSetCurrent", context)
        stream = ctypes.c_void_p()
        call("cuStreamCreate", ctypes.byref(stream), 1)
        self.stream = int(stream.value or 0)
        self.handle, self.context = handle, context

    def array(self) -> Array:
        pointer = ctypes.c_uint64()
        call(
            "cuMemAllocAsync", ctypes.byref(pointer), ctypes.c_size_t(8 * WIDTH), ctypes.c_void_p(self.stream)
        )
        return Array(pointer.value, self)

    def axpb(self, a: float, x: Array, b: float, seconds: float = 0.0) -> Array:
        made = self.array()
        call("fake_axpb", self.stream, made.pointer, x.pointer, WIDTH, a, b, seconds)
        return made

    def of(self, values: list[float]) -> Array:
        made = self.array()
        data = (ctypes.c_double * WIDTH)(*values)
        stream = ctypes.c_void_p(self.stream)
        call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(made.pointer), data, ctypes.c_size_t(8 * WIDTH), stream)
        call("cuStreamSynchronize", stream)
        return made

    def close(self) -> None:
        call("cuStreamDestroy_v2", ctypes.c_void_p(self.stream))
        call("cuDevicePrimaryCtxRelease_v2", self.handle)


class Array:
    """Four doubles on a device, of our own or of whoever gave them by DLPack."""

    def __init__(self, pointer: int, device: Device, capsule: Any = None) -> None:
        self.pointer, self.device, self.capsule = pointer, device, capsule

    def __del__(self) -> None:
        if self.capsule is None:
            # In whichever thread this is; and a test may have closed the device before. Leaks are counted.
            library, stream = _library(), ctypes.c_void_p(self.device.stream)
            library.cuCtxPushCurrent_v2(self.device.context)
            library.cuMemFreeAsync(ctypes.c_uint64(self.pointer), stream)
            library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def read(self) -> list[float]:
        data = (ctypes.c_double * WIDTH)()
        call("cuStreamSynchronize", ctypes.c_void_p(self.device.stream))
        call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(self.pointer), ctypes.c_size_t(8 * WIDTH))
        return list(data)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device.index)

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        assert stream == self.device.stream, "it is asked for on the stream that it was made on"
        return _capsule(self)


def from_dlpack(device: Device) -> Any:
    """What makes of an array of the executor's one of ours."""

    def convert(given: Any) -> Array:
        assert given.__dlpack_device__() == (2, device.index)
        capsule = given.__dlpack__(stream=device.stream)
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        managed = ctypes.cast(get(capsule, b"dltensor"), ctypes.POINTER(_Managed)).contents
        assert (managed.ndim, managed.shape[0], managed.bits) == (1, WIDTH, 64)
        return Array(managed.data, device, capsule)

    return convert


class _Managed(ctypes.Structure):
    """DLManagedTensor."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [
    ("data", ctypes.c_uint64),
    ("device_type", ctypes.c_int32),
    ("device_id", ctypes.c_int32),
    ("ndim", ctypes.c_int32),
    ("code", ctypes.c_uint8),
    ("bits", ctypes.c_uint8),
    ("lanes", ctypes.c_uint16),
    ("shape", ctypes.POINTER(ctypes.c_int64)),
    ("strides", ctypes.POINTER(ctypes.c_int64)),
    ("byte_offset", ctypes.c_uint64),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
]

_kept: dict[int, Any] = {}


@_Deleter
def _delete(managed: Any) -> None:
    _kept.pop(ctypes.addressof(managed.contents), None)


def _capsule(array: Array) -> Any:
    shape = (ctypes.c_int64 * 1)(WIDTH)
    managed = _Managed(array.pointer, 2, array.device.index, 1, 2, 64, 1, shape, None, 0, None, _delete)
    _kept[ctypes.addressof(managed)] = (managed, shape, array)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(managed), b"dltensor", None)
