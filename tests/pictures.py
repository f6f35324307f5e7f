"""Reads pictures back: the cells of an SVG, and the picture that a page carries, without asking the code
that drew them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import struct
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

SVG = "{http://www.w3.org/2000/svg}"
TYPES = {"u1": np.uint8, "u4": np.uint32, "f8": np.float64}


class Cell(NamedTuple):
    panel: int
    rank: int
    slot: int
    start: float
    end: float
    x: float
    width: float
    y: float
    actions: list[tuple[str, int, int]]  # kind, stage, microbatch, by the attributes
    kinds: list[str]  # by the colours
    numbers: list[str]  # by the texts
    is_framed: bool
    words: str

    @property
    def text(self) -> str:
        """As a schedule has it, of what is drawn: the colours' kinds and the numbers in them."""
        parts = [
            f"{stage}{kind}{number}"
            for (_, stage, _), kind, number in zip(self.actions, self.kinds, self.numbers, strict=True)
        ]
        return f"({parts[0]};{parts[1]})" if self.is_framed else parts[0]


def cells_of(svg: str) -> list[Cell]:
    root = ElementTree.fromstring(svg)
    return [_cell(group) for group in root.iter(f"{SVG}g") if "data-slot" in group.attrib]


def _cell(group: ElementTree.Element) -> Cell:
    data = {name.removeprefix("data-"): value for name, value in group.attrib.items()}
    rects = group.findall(f"{SVG}rect")
    filled = [rect for rect in rects if not rect.attrib["class"].startswith("l-")]
    framed = [rect for rect in rects if rect.attrib["class"] == "l-border"]
    split = (data[name].split() for name in ("kind", "stage", "microbatch"))
    return Cell(
        panel=int(data["panel"]),
        rank=int(data["rank"]),
        slot=int(data["slot"]),
        start=float(data["start"]),
        end=float(data["end"]),
        x=float(filled[0].attrib["x"]),
        width=sum(float(rect.attrib["width"]) for rect in filled),
        y=float(filled[0].attrib["y"]),
        actions=[(kind, int(stage), int(microbatch)) for kind, stage, microbatch in zip(*split, strict=True)],
        kinds=[rect.attrib["class"][0] for rect in filled],
        numbers=[text.text or "" for text in group.findall(f"{SVG}text")],
        is_framed=bool(framed),
        words=group.findtext(f"{SVG}title") or "",
    )


def rows_of(cells: list[Cell], panel: int = 0) -> list[list[Cell]]:
    """The cells of each rank from left to right, as they are seen."""
    ranks = max(cell.rank for cell in cells) + 1
    rows = [[c for c in cells if c.panel == panel and c.rank == rank] for rank in range(ranks)]
    return [sorted(row, key=lambda cell: (cell.x, cell.slot)) for row in rows]


def texts_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def classes_of(svg: str) -> set[str]:
    root = ElementTree.fromstring(svg)
    return {element.attrib["class"] for element in root.iter() if "class" in element.attrib}


class Area(NamedTuple):
    x: float
    y: float
    width: float
    height: float


def areas_of(svg: str, name: str) -> list[Area]:
    """The rectangles of a class that are no part of a cell and lie in a row: those of legends are lower."""
    root = ElementTree.fromstring(svg)
    rects = [rect for rect in root.findall(f"{SVG}rect") if rect.attrib["class"] == name]
    areas = [Area(*(float(rect.attrib[key]) for key in Area._fields)) for rect in rects]
    lowest = max(cell.y for cell in cells_of(svg)) + 40
    return [area for area in areas if area.y < lowest]


def parse_block(block: bytes) -> dict[str, Any]:
    """The picture in a block of bytes, with its arrays."""
    (length,) = struct.unpack_from("<I", block)
    picture: dict[str, Any] = json.loads(block[4 : 4 + length])
    for panel in picture["panels"]:
        for name, (kind, offset, count) in panel["columns"].items():
            assert offset % 8 == 0
            panel[name] = np.frombuffer(block, TYPES[kind], count, offset)
    return picture


def picture_of(page: str) -> dict[str, Any]:
    """The picture that a page carries."""
    found = re.search(r'<script type="application/octet-stream" id="picture">([^<]*)</script>', page)
    assert found is not None
    return parse_block(gzip.decompress(base64.b64decode(found[1])))
