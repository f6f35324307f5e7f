"""``simulate``: the figures of a schedule under given costs, as a page or as JSON."""

from __future__ import annotations

import argparse
import textwrap

from dualpipe_rs._core import Figure, Timeline
from dualpipe_rs.cli.figures import figures, makespan_formula, path_in_short, to_json
from dualpipe_rs.cli.outcome import Outcome
from dualpipe_rs.cli.parser import Commands, add_command
from dualpipe_rs.cli.pricing import Pricing, add_pricing, pricing
from dualpipe_rs.cli.source import Source, add_source, counted, described, load
from dualpipe_rs.cli.table import Column, table
from dualpipe_rs.cli.terminal import Terminal, add_terminal, terminal

EXAMPLES = """\
  {prog} dualpipe --overlap 2.4 --p2p-cost 0.1
  {prog} 1f1b -p 4 -m 8 --forward 1,1,1,1.5    one cost a stage
  {prog} dualpipev --p2p batched               sends that wait for the next commit
  {prog} mine.txt --json | jq .makespan
"""

_CAUSES = {
    "warm_up": "before the first slot",
    "dependency": "until what is needed had been made",
    "hop": "until that could have come",
    "partner": "for a receive or a commit",
    "overhead": "before a slot that had all it needed",
    "exchange": "for the exchange of gradients",
    "cool_down": "after the last slot",
}


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "simulate",
        run,
        summary="what a step costs: makespan, bubbles, why ranks idle",
        description="Simulates a step under the given costs and prints its figures.",
        examples=EXAMPLES,
    )
    add_source(parser)
    add_pricing(parser)
    add_terminal(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document, numbers to the last bit")


def run(options: argparse.Namespace) -> Outcome:
    prices = pricing(options)
    source = load(options)
    timeline = prices.simulate(source.schedule)
    found = makespan_formula(source, prices)
    if options.json:
        return Outcome(to_json(figures(source.schedule, timeline, prices, found)))
    screen = terminal(options)
    parts = [
        [screen.bold(described(source.schedule)), ""],
        _whole(timeline, prices, found, screen),
        ["", *_by_rank(timeline, screen)],
        ["", *_by_cause(timeline, screen)],
        ["", *_path(source, timeline, screen)],
    ]
    return Outcome("\n".join(line for part in parts for line in part))


def _whole(timeline: Timeline, prices: Pricing, found: Figure | None, screen: Terminal) -> list[str]:
    rows = [
        ("makespan", f"{timeline.makespan:.6g}", "from the first start to the last end"),
        ("formula", *_formula(found, prices)),
        ("span", f"{timeline.span:.6g}", "the longest rank's own start to its own end"),
        ("bubble ratio", f"{timeline.bubble_ratio:.2%}", "idle over all time"),
        ("bubble over ideal", f"{timeline.bubble_over_ideal:.2%}", "idle over busy time"),
        ("span bubble ratio", f"{timeline.span_bubble_ratio:.2%}", "with the span in place of the makespan"),
    ]
    return _rows(rows, screen)


def _formula(found: Figure | None, prices: Pricing) -> tuple[str, str]:
    if found is not None:
        return f"{found.value:.6g}", "exact" if found.exact else f"not exact; {found.why}"
    if prices.p2p != "eager":
        return "-", "the published forms are for eager sends"
    return "-", "none is published for this schedule's makespan"


def _rows(rows: list[tuple[str, str, str]], screen: Terminal) -> list[str]:
    """Name, number and remark, a remark that is too long going on below itself."""
    names, numbers = (max(len(row[column]) for row in rows) for column in (0, 1))
    indent = names + numbers + 4
    lines: list[str] = []
    for name, number, remark in rows:
        first, *rest = textwrap.wrap(remark, max(12, screen.width - indent)) or [""]
        lines.append(
            f"{name.ljust(names)}  {screen.bold(number.rjust(numbers))}  {screen.dim(first)}".rstrip()
        )
        lines += [" " * indent + screen.dim(line) for line in rest]
    return lines


def _by_rank(timeline: Timeline, screen: Terminal) -> list[str]:
    busy, idle, peaks = timeline.busy.tolist(), timeline.idle.tolist(), timeline.peak_activations.tolist()
    shares = [lost / (used + lost) if used + lost > 0 else 0.0 for used, lost in zip(busy, idle, strict=True)]
    columns = [
        Column("rank", [str(rank) for rank in range(timeline.num_ranks)]),
        Column("busy", [f"{time:.6g}" for time in busy]),
        Column("idle", [f"{time:.6g}" for time in idle]),
        Column("idle %", [f"{share:.2%}" for share in shares]),
        Column("peak activations", [str(peak) for peak in peaks]),
    ]
    head, *rows = table(columns, screen.width)
    return [screen.bold(head), *rows]


def _by_cause(timeline: Timeline, screen: Terminal) -> list[str]:
    sums = {cause: float(idle.sum()) for cause, idle in timeline.idle_by_cause.items()}
    total = sum(sums.values())
    found = {cause: idle for cause, idle in sums.items() if idle > 0}
    if not found:
        return ["no rank is ever idle"]
    columns = [
        Column("idle by cause", [cause.replace("_", "-") for cause in found], to_the_left=True),
        Column("all ranks", [f"{idle:.6g}" for idle in found.values()]),
        Column("share", [f"{idle / total:.1%}" for idle in found.values()]),
        Column("", [_CAUSES.get(cause, "") for cause in found], to_the_left=True),
    ]
    head, *rows = table(columns, screen.width)
    return [screen.bold(head), *rows]


def _path(source: Source, timeline: Timeline, screen: Terminal) -> list[str]:
    path = path_in_short(source.schedule, timeline)
    parts = [f"{kind} {time:.6g}" for kind, time in sorted(path.time_by_kind.items())]
    if path.between > 1e-9 * timeline.makespan:
        parts.append(f"hops and waits {path.between:.6g}")
    head = f"critical path: {counted(len(path.slots), 'slot')}; {', '.join(parts)}"
    shown = path.slots if len(path.slots) <= 12 else [*path.slots[:6], "...", *path.slots[-5:]]
    lines = textwrap.wrap(head, screen.width) + textwrap.wrap(" ".join(shown), screen.width)
    return [screen.bold(lines[0]), *lines[1:]]
