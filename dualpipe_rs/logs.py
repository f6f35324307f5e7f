"""What the logger ``dualpipe_rs`` says of a step, with rank and slot as fields of each record.

``logging.getLogger("dualpipe_rs").setLevel(logging.DEBUG)`` shows each slot with its times;
``%(rank)s`` and ``%(slot)s`` may stand in a format. Failures are errors, copies made equal are warnings.
"""

from __future__ import annotations

import logging

from dualpipe_rs._core import Timeline

log = logging.getLogger("dualpipe_rs")


def log_step(timeline: Timeline, rank: int) -> None:
    """At DEBUG, a line for each slot of the rank, and one for the step."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    for span in timeline.spans[timeline.spans["rank"] == rank]:
        action = f"{span['stage']}{span['kind']}{span['microbatch']}"
        milliseconds = 1e3 * (span["end"] - span["start"])
        log.debug(
            "rank %d, slot %d, %s: %.3f ms, begun at %.3f ms",
            *(rank, span["slot"], action, milliseconds, 1e3 * span["start"]),
            extra={"rank": rank, "slot": int(span["slot"])},
        )
    log.debug(
        "rank %d: a step of %.3f ms, bubble %.3f",
        *(rank, 1e3 * timeline.makespan, timeline.bubble_ratio),
        extra={"rank": rank, "slot": None},
    )
