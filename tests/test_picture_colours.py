"""The four kinds can be told apart by readers with any kind of colour blindness, and in grey; the numbers in
the cells can be read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pictures import parse_block

import dualpipe_rs as dp
from dualpipe_rs._core import Picture
from dualpipe_rs.cli.palette import TONES
from dualpipe_rs.drawing.block import block

# Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB.
BLINDNESS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB, for D65."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = matrix @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def kinds_of_colours() -> list[list[str]]:
    """[chunk][kind] of a rank with two stages."""
    panel = parse_block(block(Picture([dp.schedule("dualpipe", 2, 4)])))["panels"][0]
    colours: list[list[str]] = panel["colours"][2]
    return colours


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_kinds_differ_whatever_the_eye(blindness: str) -> None:
    for first, second in itertools.combinations(range(4), 2):
        for one, other in itertools.product(kinds_of_colours(), repeat=2):
            seen = [
                lab(BLINDNESS[blindness] @ linear(colours[kind]))
                for colours, kind in ((one, first), (other, second))
            ]
            # 2 can just be told apart side by side (CIE 1976).
            assert np.linalg.norm(seen[0] - seen[1]) > 25, (first, second)


def test_kinds_differ_in_grey() -> None:
    for colours in kinds_of_colours():
        light = sorted(lab(linear(colour))[0] for colour in colours)
        assert min(np.diff(light)) > 15
        forward, backward_input, weights, full = (lab(linear(colour))[0] for colour in colours)
        assert weights > forward > backward_input > full


def test_numbers_can_be_read() -> None:
    """A contrast of at least 4.5 to 1, as WCAG 2 asks."""
    picture = parse_block(block(Picture([dp.schedule("dualpipe", 2, 4)])))
    for colour, text in picture["on"].items():
        levels = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(colour), linear(text))]
        assert (max(levels) + 0.05) / (min(levels) + 0.05) >= 4.5, colour


def test_a_terminal_has_the_same_colours() -> None:
    """Each of its tones is nearer to the picture's of its kind than to any of another kind."""

    def of_256(number: int) -> np.ndarray:
        levels = [0, 95, 135, 175, 215, 255]
        red, green, blue = (levels[(number - 16) // base % 6] for base in (36, 6, 1))
        return lab(linear(f"#{red:02x}{green:02x}{blue:02x}"))

    pictured = [(kind, lab(linear(c))) for tones in kinds_of_colours() for kind, c in enumerate(tones)]
    for kind, letter in enumerate("FIWB"):
        for tone in TONES[letter]:
            seen = of_256(tone.background)
            nearest = min(pictured, key=lambda other: float(np.linalg.norm(seen - other[1])))
            assert nearest[0] == kind, (letter, tone)
