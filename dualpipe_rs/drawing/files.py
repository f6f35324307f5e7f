"""``save()``: which suffix is which file."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

from dualpipe_rs._core import Picture, Schedule, Timeline
from dualpipe_rs.drawing.options import Options
from dualpipe_rs.errors import UsageError

Seen: TypeAlias = "Schedule | Timeline"

_PICTURES = (".svg", ".html", ".png", ".pdf")
_TRACES = (".json", ".pftrace")
_TEXTS = (".txt", ".csv")


def save(first: Seen, path: str | PathLike[str], *others: Seen, **options: Any) -> None:
    """Writes a schedule or timeline to a file of the kind that its suffix says; see :meth:`Timeline.save`."""
    # As show() has it: what the ranks hold belongs to a timeline, not to a bare order.
    write((first, *others), path, options, {"memory": isinstance(first, Timeline)})


def write(
    seen: tuple[Seen, ...], path: str | PathLike[str], options: dict[str, Any], own: dict[str, Any]
) -> None:
    """The same; pictures have the options ``own`` where ``options`` say nothing else."""
    first, *others = seen
    try:
        target = Path(fspath(path))
    except TypeError:
        raise UsageError(f"path is of type {type(path).__name__}; it is a str or a pathlib.Path") from None
    suffix = target.suffix.lower()
    if suffix in _PICTURES:
        data = _picture(suffix, seen, {**own, **options})
    elif suffix in _TRACES:
        data = _trace(suffix, _alone(first, others, suffix), options)
    elif suffix in _TEXTS and isinstance(first, Schedule):
        data = _text(suffix, _alone(first, others, suffix), options)
    else:
        known = (*_PICTURES, *_TRACES, *(_TEXTS if isinstance(first, Schedule) else ()))
        what = f"the suffix {suffix!r}" if suffix else "no suffix"
        raise UsageError(f"{target.name!r} has {what}; files are written as {', '.join(known)}")
    target.write_bytes(data)


def _alone(first: Seen, others: list[Seen], suffix: str) -> Seen:
    if others:
        raise UsageError(f"a {suffix} file holds one step, and {1 + len(others)} were given")
    return first


def _picture(suffix: str, seen: tuple[Seen, ...], given: dict[str, Any]) -> bytes:
    given = dict(given)
    dpi = given.pop("dpi", 200)
    options = Options.of(given)
    picture = Picture(seen)
    if suffix == ".svg":
        return picture.svg(options.theme, options.drawn).encode()
    if suffix == ".html":
        from dualpipe_rs.drawing.page import page

        return page(picture, options).encode()
    from dualpipe_rs.drawing.figure import image

    return image(picture, options, suffix, dpi)


def _trace(suffix: str, first: Seen, options: dict[str, Any]) -> bytes:
    timeline = first.simulate() if isinstance(first, Schedule) else first
    write: Callable[..., bytes | str] = timeline.to_chrome_json if suffix == ".json" else timeline.to_perfetto
    _only(options, "unit", suffix)
    trace = write(**options)
    return trace.encode() if isinstance(trace, str) else trace


def _text(suffix: str, first: Seen, options: dict[str, Any]) -> bytes:
    assert isinstance(first, Schedule)
    _only(options, "", suffix)
    return (first.to_text() if suffix == ".txt" else first.to_torch_csv()).encode()


def _only(options: dict[str, Any], known: str, suffix: str) -> None:
    for name in options:
        if name != known:
            has = f"it has {known}" if known else "it has none"
            raise UsageError(f"a {suffix} file has no option {name!r}; {has}")
