"""What is drawn beside the cells: checked once, for every way in which a picture is shown."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dualpipe_rs.errors import UsageError
from dualpipe_rs.given import amount, shown

THEMES = ("auto", "light", "dark")


@dataclass(frozen=True)
class Options:
    """What a picture shows.

    - ``causes``: idle time, shaded by what was waited for.
    - ``critical_path``: the slots that decide when the step ends.
    - ``memory``: a curve below of what the ranks hold.
    - ``fit``: of several timelines, each as wide as its own makespan; else they share one axis of time.
    - ``theme``: "light", "dark", or "auto", which follows the reader's (in files that cannot, light).
    - ``width``: in pixels, of files and of static pictures.
    """

    causes: bool = False
    critical_path: bool = False
    memory: bool = False
    fit: bool = False
    theme: str = "auto"
    width: float = 1120.0

    @classmethod
    def of(cls, given: dict[str, Any], **defaults: Any) -> Options:
        """Options from keywords; UsageError for one that does not exist or cannot be."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise UsageError(f"a picture has no option {name!r}; it has {', '.join(known)}")
        options = cls(**{**defaults, **given})
        for name in ("causes", "critical_path", "memory", "fit"):
            if not isinstance(getattr(options, name), bool):
                raise UsageError(f"{name} is {getattr(options, name)!r}; it is True or False")
        if not isinstance(options.theme, str) or options.theme not in THEMES:
            raise UsageError(f'theme is {shown(options.theme)}; it is "auto", "light" or "dark"')
        width = amount("width", options.width, "a number of pixels")
        if not 240 <= width <= 20_000:
            raise UsageError(f"width is {width:g}; a picture is 240 to 20000 pixels wide")
        return options

    @property
    def drawn(self) -> dict[str, Any]:
        """What ``Picture.svg`` and ``Picture.shapes`` take."""
        return {
            "width": float(self.width),
            "causes": self.causes,
            "critical_path": self.critical_path,
            "memory": self.memory,
            "fit": self.fit,
        }

    @property
    def fixed_theme(self) -> str:
        """For what cannot follow its reader's theme."""
        return "light" if self.theme == "auto" else self.theme

    @property
    def turnable(self) -> dict[str, Any]:
        """What the reader of a canvas can turn by hand."""
        names = ("causes", "critical_path", "memory", "fit", "theme")
        return {name: getattr(self, name) for name in names}
