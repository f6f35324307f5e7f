"""A picture as the block of bytes that ``canvas/picture.js`` reads: the length of a header (u32), the header
in JSON, then the arrays that it lists, all little-endian and each at a multiple of 8 bytes."""

from __future__ import annotations

import json
import struct

from dualpipe_rs._core import Picture

# The type of each array; of all others u4.
_TYPES = {
    **dict.fromkeys(("kind", "kind2", "critical", "wait_cause", "wait_kind"), "u1"),
    **dict.fromkeys(
        ("start", "end", "wait_start", "wait_end", "hop_end", "held_time", "held", "closing"), "f8"
    ),
}


def block(picture: Picture) -> bytes:
    """The whole picture; the same bytes for the same picture."""
    kinds, causes = Picture.words()
    panels, arrays = [], []
    size = 0
    on: dict[str, str] = {}
    for panel in picture.panels():
        on.update(panel.pop("on"))
        columns = {}
        for name in [name for name, value in panel.items() if isinstance(value, bytes)]:
            array = panel.pop(name)
            kind = _TYPES.get(name, "u4")
            columns[name] = [kind, size, len(array) // int(kind[1])]
            arrays.append(array + bytes(-len(array) % 8))
            size += len(arrays[-1])
        panels.append({**panel, "columns": columns})
    header = {"panels": panels, "kinds": kinds, "causes": causes, "colours": Picture.colours(), "on": on}
    return _joined(header, panels, arrays)


def _joined(header: dict, panels: list[dict], arrays: list[bytes]) -> bytes:
    """Offsets count from the start of the block, behind a header whose length they are part of."""
    room = -(-(4 + len(json.dumps(header)) + 16 * sum(len(panel["columns"]) for panel in panels)) // 8) * 8
    for panel in panels:
        panel["columns"] = {name: [kind, at + room, n] for name, (kind, at, n) in panel["columns"].items()}
    text = json.dumps(header).encode().ljust(room - 4)
    return b"".join([struct.pack("<I", len(text)), text, *arrays])
