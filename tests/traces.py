"""What a trace file shows, read back from either format: no tests here.

Chrome's JSON is read as its viewers do: a flow's end belongs to the slice before it in the file, and must lie
in it. Perfetto's file is parsed by the public schema, from the package `perfetto`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import dualpipe_rs as dp


class Slice(NamedTuple):
    """Times are whole nanoseconds."""

    rank: int
    lane: str
    start: int
    end: int
    name: str
    category: str
    args: dict[str, Any]

    @property
    def slot(self) -> tuple[int, int]:
        return self.args["rank"], self.args["slot"]


class Trace(NamedTuple):
    lanes: dict[int, list[str]]  # by rank, in the order in which they are shown
    slices: list[Slice]
    flows: list[tuple[Slice, Slice]]
    counters: dict[tuple[int, str], list[tuple[int, float]]]  # by rank and name


# ---- Chrome ------------------------------------------------------------------------------------------------


def nanoseconds(microseconds: float) -> int:
    assert round(microseconds * 1000, 3) == round(microseconds * 1000)
    return round(microseconds * 1000)


def read_chrome(text: str) -> Trace:
    events = json.loads(text)["traceEvents"]
    ranks, threads = names(events)
    slices: list[Slice] = []
    last: dict[tuple[int, int], Slice] = {}
    ends: dict[str, dict[int, Slice]] = {"s": {}, "f": {}}
    counters = defaultdict(list)
    for event in events:
        where, rank = (event["pid"], event["tid"]), ranks[event["pid"]]
        if event["ph"] == "X":
            start = nanoseconds(event["ts"])
            end = start + nanoseconds(event["dur"])
            known = event["name"], event["cat"], event["args"]
            last[where] = Slice(rank, threads[where], start, end, *known)
            slices.append(last[where])
        elif event["ph"] in ends:
            around, time = last[where], nanoseconds(event["ts"])
            assert around.start <= time < max(around.end, around.start + 1)
            assert event["id"] not in ends[event["ph"]]
            assert event.get("bp") == ("e" if event["ph"] == "f" else None)
            ends[event["ph"]][event["id"]] = around
        elif event["ph"] == "C":
            for name, value in event["args"].items():
                counters[rank, f"{event['name']}: {name}"].append((nanoseconds(event["ts"]), value))
        else:
            assert event["ph"] == "M"
    assert ends["s"].keys() == ends["f"].keys()
    flows = [(ends["s"][flow], ends["f"][flow]) for flow in ends["s"]]
    lanes = {rank: [threads[at] for at in sorted(threads) if at[0] == pid] for pid, rank in ranks.items()}
    return Trace(lanes, slices, flows, dict(counters))


def names(events: list[dict[str, Any]]) -> tuple[dict[int, int], dict[tuple[int, int], str]]:
    ranks: dict[int, int] = {}
    threads: dict[tuple[int, int], str] = {}
    for event in events:
        if event["name"] == "process_name":
            ranks[event["pid"]] = int(event["args"]["name"].removeprefix("rank "))
        elif event["name"] == "thread_name":
            assert event["tid"] != event["pid"] > 0  # Else a viewer would show it first.
            threads[event["pid"], event["tid"]] = event["args"]["name"]
    return ranks, threads


# ---- Perfetto ----------------------------------------------------------------------------------------------


def read_perfetto(data: bytes) -> Trace:
    schema = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    trace = schema.Trace.FromString(data)
    trace.DiscardUnknownFields()
    assert trace.ByteSize() == len(data)  # All fields are known, with the type that they have.
    packets = trace.packet
    tracks, interned = {}, packets[0].interned_data
    categories = {one.iid: one.name for one in interned.event_categories}
    keys = {one.iid: one.name for one in interned.debug_annotation_names}
    slices: list[Slice] = []
    is_open: dict[int, Any] = {}
    leaving: dict[int, Slice] = {}
    coming: dict[int, Slice] = {}
    counters = defaultdict(list)
    for packet in packets:
        assert packet.trusted_packet_sequence_id == 1
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor
        elif packet.HasField("track_event"):
            event = packet.track_event
            track = tracks[event.track_uuid]
            rank = int(tracks[track.parent_uuid].name.removeprefix("rank "))
            if event.type == event.TYPE_COUNTER:
                counters[rank, track.name].append((packet.timestamp, event.double_counter_value))
            elif event.type == event.TYPE_SLICE_BEGIN:
                assert event.track_uuid not in is_open  # One within another would hide a part of it.
                is_open[event.track_uuid] = packet
            else:
                assert event.type == event.TYPE_SLICE_END
                begun = is_open.pop(event.track_uuid)
                args = {keys[a.name_iid]: value_of(a) for a in begun.track_event.debug_annotations}
                category = categories[begun.track_event.category_iids[0]]
                times = begun.timestamp, packet.timestamp
                slices.append(Slice(rank, track.name, *times, begun.track_event.name, category, args))
                leaving |= dict.fromkeys(begun.track_event.flow_ids, slices[-1])
                coming |= dict.fromkeys(begun.track_event.terminating_flow_ids, slices[-1])
    assert not is_open
    assert leaving.keys() == coming.keys()
    flows = [(leaving[flow], coming[flow]) for flow in leaving]
    return Trace(lanes_of(tracks), slices, flows, dict(counters))


def value_of(annotation: Any) -> Any:
    return getattr(annotation, annotation.WhichOneof("value"))


def lanes_of(tracks: dict[int, Any]) -> dict[int, list[str]]:
    """In the explicit order that the descriptors give them; of counters, none."""
    root = tracks[0]
    assert root.child_ordering == root.EXPLICIT
    ranks = [track for track in tracks.values() if track.uuid and not track.parent_uuid]
    lanes = {}
    for rank in sorted(ranks, key=lambda track: track.sibling_order_rank):
        assert rank.child_ordering == rank.EXPLICIT
        below = [t for t in tracks.values() if t.parent_uuid == rank.uuid and not t.HasField("counter")]
        below.sort(key=lambda track: track.sibling_order_rank)
        lanes[int(rank.name.removeprefix("rank "))] = [track.name for track in below]
    return lanes


READERS: dict[str, Callable[..., Trace]] = {
    "chrome": lambda timeline, **unit: read_chrome(timeline.to_chrome_json(**unit)),
    "perfetto": lambda timeline, **unit: read_perfetto(timeline.to_perfetto(**unit)),
}


def traced(timeline: dp.Timeline, form: str, **unit: float) -> Trace:
    return READERS[form](timeline, **unit)
