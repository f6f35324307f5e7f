"""DeepSeek's ``set_p2p_tensor_shapes`` and ``set_p2p_tensor_dtype``: accepted, and then enforced.

Nothing needs them here, as each pipeline finds out what travels between its stages by itself. A script that
calls them has said what it expects, and is told where that is not so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dualpipe_rs.batch import Values
from dualpipe_rs.errors import UsageError


@dataclass(frozen=True)
class Declared:
    """What the outputs of every stage but the last are said to be; None where nothing was said."""

    shapes: tuple[tuple[int, ...], ...] | None = None
    dtype: torch.dtype | None = None

    def check(self, outputs: Values, stage: int, microbatch: int) -> None:
        """Raises UsageError where the outputs of a stage are not as declared."""
        found = f"stage {stage} returned for microbatch {microbatch}"
        if self.shapes is not None:
            shapes = [None if t is None else tuple(t.shape) for t in outputs]
            fits = len(shapes) == len(self.shapes) and all(
                a is None or a == b for a, b in zip(shapes, self.shapes, strict=True)
            )
            if not fits:
                raise UsageError(
                    f"{found} the shapes {shapes}, and set_p2p_tensor_shapes() had declared "
                    f"{list(self.shapes)}; "
                    "declare what the stages return, or nothing, as shapes are found by themselves"
                )
        wrong = [t.dtype for t in outputs if t is not None and t.dtype is not self.dtype]
        if self.dtype is not None and wrong:
            raise UsageError(
                f"{found} a tensor of {wrong[0]}, and set_p2p_tensor_dtype() had declared {self.dtype}; "
                "declare what the stages return, or nothing, as types are found by themselves"
            )


_declared = Declared()


def declared() -> Declared:
    """What holds for a pipeline that is made now, or makes its first step."""
    return _declared


def set_p2p_tensor_shapes(shapes: Sequence[Sequence[int]] | None) -> None:
    """Declares the shapes of the tensors that a stage returns for one microbatch, as DeepSeek's package
    requires.

    Here shapes are found by themselves, and this need not be called. It holds for pipelines that are made
    afterwards, and for those made before that have made no step yet; never for others, so that pipelines of
    different shapes live side by side. A step in which a stage but the last returns something else raises.

    Args:
        shapes: one shape for each tensor; ``None`` takes the declaration back.
    """
    global _declared
    if shapes is not None and not all(
        isinstance(shape, Sequence) and all(isinstance(size, int) for size in shape) for shape in shapes
    ):
        raise UsageError(
            f"shapes is {shapes!r}; it is a list of shapes, one for each tensor, such as [(4, 256)]"
        )
    listed = None if shapes is None else tuple(tuple(shape) for shape in shapes)
    _declared = replace(_declared, shapes=listed)


def set_p2p_tensor_dtype(dtype: torch.dtype | None) -> None:
    """Declares the type of all tensors between stages; see :func:`set_p2p_tensor_shapes`."""
    global _declared
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UsageError(f"dtype is {dtype!r}; it is a torch.dtype, such as torch.bfloat16")
    _declared = replace(_declared, dtype=dtype)
