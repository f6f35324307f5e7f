"""The colours of actions, in the 256 that every terminal has, and how a block of one is painted.

They are near those of the pictures (``rust/picture/palette.rs``), which eyes of any kind tell apart: blue,
brown, yellow and dark green. A light tone is the stage of a rank's first slot, a dark one any other; letters
say the same without colour.
"""

from __future__ import annotations

from dataclasses import dataclass

RESET = "\x1b[0m"
_BLACK, _WHITE = 16, 231


@dataclass(frozen=True)
class Tone:
    """A background, and the colour of letters on it."""

    background: int
    letters: int

    def edge(self, signs: bool) -> str:
        """A column whose thin dark line keeps a block from the one before."""
        return Tone(self.background, _BLACK).paint("▏" if signs else " ")

    def paint(self, text: str) -> str:
        return f"\x1b[38;5;{self.letters};48;5;{self.background}m{text}"


#: By kind: the tone of a rank's own first stage, then that of its others.
TONES = {
    "F": (Tone(117, _BLACK), Tone(75, _BLACK)),
    "I": (Tone(173, _BLACK), Tone(130, _WHITE)),
    "W": (Tone(229, _BLACK), Tone(221, _BLACK)),
    "B": (Tone(29, _WHITE), Tone(23, _WHITE)),
}


@dataclass(frozen=True)
class Mark:
    """One action to be painted."""

    kind: str
    microbatch: int
    other_stage: bool

    @property
    def tone(self) -> Tone:
        return TONES[self.kind][self.other_stage]

    @property
    def letter(self) -> str:
        return self.kind.lower() if self.other_stage else self.kind

    def paint(self, width: int, signs: bool) -> str:
        """A block of so many columns."""
        if width == 1:
            return self.tone.paint(self.letter)
        text = f"{self.letter}{self.microbatch}"
        text = text if len(text) < width else self.letter
        return self.tone.edge(signs) + self.tone.paint(text.ljust(width - 1))


def paint(marks: list[Mark], width: int, signs: bool) -> str:
    """A slot: one action, or a pair's two side by side; in a single column a half of each colour."""
    if len(marks) == 1:
        return marks[0].paint(width, signs)
    first, second = marks
    if width == 1:
        halves = Tone(second.tone.background, first.tone.background)
        return halves.paint("▌") if signs else first.paint(1, signs)
    left = (width + 1) // 2
    rest = width - left
    text = f"{second.letter}{second.microbatch}"
    text = text if len(text) <= rest else second.letter
    return first.paint(left, signs) + second.tone.paint(text.ljust(rest))
