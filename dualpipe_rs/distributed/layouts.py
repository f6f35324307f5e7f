"""What a stage hands over, in numbers: types, shapes and which parts are None.

In the first step each tensor is announced by a header; afterwards both ends know it, and the receiver makes
room before it is sent. It knows nothing of who sends to whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dualpipe_rs.batch import Values
from dualpipe_rs.errors import UsageError

#: How many numbers the first message of a header holds; what is longer follows in a second one.
HEADER = 32
_NOTHING = -1
# The order is what headers number them by, so it must be the same in every process.
_NAMES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_DTYPES = [getattr(torch, name, None) for name in _NAMES]
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES) if dtype is not None}


@dataclass(frozen=True)
class Part:
    """One tensor of a value: its type, its shape, whether it is to collect a gradient, and where it lives.

    ``on_host``: in the CPU's memory, also where the stages are on an accelerator.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    requires_grad: bool
    on_host: bool

    def empty(self, device: torch.device) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="cpu" if self.on_host else device)

    def zeros(self, device: torch.device) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device="cpu" if self.on_host else device)

    def __str__(self) -> str:
        grad = ", requires grad" if self.requires_grad else ""
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}{grad}"


#: A value: a tuple of tensors and None. Its layout has the same length.
Layout = tuple[Part | None, ...]


def layout_of(value: Values, key: str) -> Layout:
    """The layout of what is to be sent under the name ``key``.

    Raises:
        UsageError: a tensor is sparse, a subclass such as a DTensor, or of a type that no header names.
    """
    return tuple(None if t is None else _part(t, key) for t in value)


def _part(tensor: Tensor, key: str) -> Part:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        kind = f"{type(tensor).__name__} ({tensor.layout})"
        raise UsageError(
            f"{words(key)} holds a {kind}; what travels between stages is a plain, dense tensor (a DTensor: "
            "its .to_local() or .full_tensor())"
        )
    if tensor.dtype not in _CODES:
        raise UsageError(f"{words(key)} holds a tensor of {tensor.dtype}, which cannot travel between ranks")
    return Part(tensor.dtype, tuple(tensor.shape), tensor.requires_grad, tensor.device.type == "cpu")


def encode(layout: Layout | None) -> list[int]:
    """A layout as whole numbers, their count first; None stands for nothing."""
    if layout is None:
        return [_NOTHING]
    numbers = [len(layout)]
    for part in layout:
        if part is None:
            numbers.append(-1)
        else:
            flags = part.requires_grad + 2 * part.on_host
            numbers += [_CODES[part.dtype], flags, len(part.shape), *part.shape]
    return [len(numbers), *numbers]


def decode(numbers: list[int]) -> Layout | None:
    """Reads what :func:`encode` wrote."""
    if numbers[0] == _NOTHING:
        return None
    rest = iter(numbers[1:])
    return tuple(_decode_part(next(rest), rest) for _ in range(next(rest)))


def _decode_part(code: int, rest: Iterator[int]) -> Part | None:
    if code == -1:
        return None
    flags, dimensions = next(rest), next(rest)
    shape = tuple(next(rest) for _ in range(dimensions))
    dtype = _DTYPES[code]
    assert dtype is not None, "both ends run the same torch"
    return Part(dtype, shape, bool(flags & 1), bool(flags & 2))


class Table:
    """What travels in steps of one kind, by the tensor's name, once a step has shown it.

    Args:
        dynamic: announce every tensor in every step, and keep nothing.
    """

    def __init__(self, dynamic: bool) -> None:
        self._dynamic = dynamic
        self._known: dict[str, Layout] = {}

    def get(self, key: str) -> Layout | None:
        return self._known.get(key)

    def learn(self, seen: Mapping[str, Layout]) -> None:
        """Keeps what a step that ended well has shown; both ends of a channel have seen the same."""
        if not self._dynamic:
            self._known.update(seen)


def fitted(value: Values, key: str, known: Layout, device: torch.device) -> Values:
    """``value``, if it is laid out as before; a gradient that is missing this time is one of zeros.

    Raises:
        UsageError: it is laid out otherwise.
    """
    if is_gradient(key) and len(value) == len(known):
        value = tuple(
            part.zeros(device) if t is None and part is not None else t
            for t, part in zip(value, known, strict=True)
        )
    layout = layout_of(value, key)
    if layout != known:
        raise UsageError(
            f"{words(key)} is {describe(layout)}, and was {describe(known)} before: shapes are fixed by the "
            "first step, so that room is made ahead; for ones that change pass dynamic_shapes=True"
        )
    return value


def is_gradient(key: str) -> bool:
    """Whether a tensor's name, such as ``"2F0"`` or ``"2B0"``, is that of a gradient."""
    return "B" in key


def words(key: str) -> str:
    """A tensor's name in words."""
    gradient = is_gradient(key)
    stage, microbatch = key.split("B" if gradient else "F")
    what = "the gradient that stage {} hands back" if gradient else "what stage {} hands on"
    return f"{what.format(stage)} for microbatch {microbatch}"


def describe(layout: Layout) -> str:
    return "(" + ", ".join("None" if part is None else str(part) for part in layout) + ")"
