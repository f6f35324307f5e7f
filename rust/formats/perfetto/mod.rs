//! A timeline as a trace of Perfetto (.pftrace): a track a rank, below it those of its lanes and of what it holds. Made
//! packet by packet, so that no more than the file itself is held; messages.rs has the packets' parts.

use prost::encoding;

use super::trace::{Category, Counted, Counters, Key, Lane, Point, Slice, Trace, Value};
use crate::error::Error;
use crate::schedule::Rank;
use crate::timeline::Timeline;

mod messages;

use messages::{
    Annotated, CLEARED, ChildTracksOrdering, CounterDescriptor, DebugAnnotation, Interned, InternedData,
    NEEDS_STATE, TracePacket, TrackDescriptor, TrackEvent, Type, Unit,
};

/// The bytes of the file; `unit` as [`Trace::new`] has it.
pub fn write(timeline: &Timeline, unit: Option<f64>) -> Result<Vec<u8>, Error> {
    let trace = Trace::new(timeline, unit)?;
    let mut file = File {
        bytes: Vec::with_capacity(trace.slices.len() * BYTES_A_SLICE),
    };
    file.names();
    file.tracks(&trace);
    trace.slices.iter().for_each(|slice| file.slice(slice));
    for (rank, points) in trace.counters.points.iter().enumerate() {
        points.iter().for_each(|point| file.counters(rank, &trace.counters, point));
    }
    Ok(file.bytes)
}

/// About what a slice takes.
const BYTES_A_SLICE: usize = 150;

struct File {
    bytes: Vec<u8>,
}

/// The number of a rank's track, above those of all that is below it. The first is not 0, which stands for the root.
fn track_of(rank: Rank) -> u64 {
    (rank as u64 + 1) << 32
}

fn track_of_lane(rank: Rank, lane: Lane) -> u64 {
    track_of(rank) + lane.place() as u64
}

/// Of what a rank holds in all (0), or of a part of it (from 1). There are fewer lanes than actions, so below 2³¹.
fn track_of_counter(rank: Rank, number: usize) -> u64 {
    track_of(rank) + (1 << 31) + number as u64
}

impl File {
    /// The file is one message of which each packet is field 1.
    fn packet(&mut self, packet: TracePacket) {
        let packet = TracePacket { trusted_packet_sequence_id: 1, ..packet };
        encoding::message::encode(1, &packet, &mut self.bytes);
    }

    fn names(&mut self) {
        let interned = |(name, iid): (&str, u64)| Interned { iid, name: name.to_string() };
        let names = InternedData {
            event_categories: Category::ALL.map(Category::name).into_iter().zip(1..).map(interned).collect(),
            debug_annotation_names: Key::ALL.map(Key::name).into_iter().zip(1..).map(interned).collect(),
        };
        self.packet(TracePacket {
            interned_data: Some(names),
            sequence_flags: CLEARED,
            ..TracePacket::default()
        });
    }

    fn tracks(&mut self, trace: &Trace) {
        let ordered = Some(ChildTracksOrdering::Explicit.into());
        let root = TrackDescriptor {
            uuid: Some(0),
            child_ordering: ordered,
            ..TrackDescriptor::default()
        };
        self.track(root, 0);
        for rank in 0..trace.ranks() {
            let track = TrackDescriptor {
                uuid: Some(track_of(rank)),
                name: format!("rank {rank}"),
                child_ordering: ordered,
                ..TrackDescriptor::default()
            };
            self.track(track, rank);
        }
        for (rank, lane) in trace.lanes() {
            self.track(child(rank, track_of_lane(rank, lane), lane.to_string()), lane.place());
        }
        let counted = trace.counters.counted;
        let parts = parts(&trace.counters).iter().map(|&(name, _)| format!("{}: {name}", counted.name()));
        let names: Vec<String> = std::iter::once(counted.name().to_string()).chain(parts).collect();
        for (rank, &lanes) in trace.communications.iter().enumerate() {
            for (number, name) in names.iter().enumerate() {
                let track = child(rank, track_of_counter(rank, number), name.clone());
                let counter = Some(CounterDescriptor { unit: Some(unit_of(counted).into()) });
                self.track(TrackDescriptor { counter, ..track }, Lane::Communication(lanes).place() + number);
            }
        }
    }

    fn track(&mut self, track: TrackDescriptor, place: usize) {
        let track = TrackDescriptor { sibling_order_rank: i32::try_from(place).ok(), ..track };
        self.packet(TracePacket { track_descriptor: Some(track), ..TracePacket::default() });
    }

    fn slice(&mut self, slice: &Slice) {
        let track_uuid = track_of_lane(slice.rank, slice.lane);
        let begin = TrackEvent {
            category_iids: vec![slice.subject.category() as u64 + 1],
            debug_annotations: annotations(slice),
            kind: Some(Type::SliceBegin.into()),
            track_uuid,
            name: Some(slice.subject.to_string()),
            flow_ids: slice.leaving.into_iter().flatten().collect(),
            terminating_flow_ids: slice.coming.into_iter().flatten().collect(),
            ..TrackEvent::default()
        };
        let end = TrackEvent {
            kind: Some(Type::SliceEnd.into()),
            track_uuid,
            ..TrackEvent::default()
        };
        self.event(slice.start, begin);
        self.event(slice.end, end);
    }

    fn event(&mut self, time: u64, event: TrackEvent) {
        self.packet(TracePacket {
            timestamp: Some(time),
            track_event: Some(event),
            sequence_flags: NEEDS_STATE,
            ..TracePacket::default()
        });
    }

    fn counters(&mut self, rank: Rank, counters: &Counters, point: &Point) {
        let parts = parts(counters).iter().map(|&(_, part)| point.parts[part]);
        for (number, value) in std::iter::once(point.total).chain(parts).enumerate() {
            let event = TrackEvent {
                kind: Some(Type::Counter.into()),
                track_uuid: track_of_counter(rank, number),
                double_counter_value: Some(value),
                ..TrackEvent::default()
            };
            self.event(point.time, event);
        }
    }
}

fn child(rank: Rank, uuid: u64, name: String) -> TrackDescriptor {
    TrackDescriptor {
        uuid: Some(uuid),
        name,
        parent_uuid: Some(track_of(rank)),
        ..TrackDescriptor::default()
    }
}

/// One part alone is the whole, which has a track already.
fn parts(counters: &Counters) -> &[(&'static str, usize)] {
    if counters.parts.len() == 1 { &[] } else { &counters.parts }
}

fn unit_of(counted: Counted) -> Unit {
    match counted {
        Counted::Bytes => Unit::SizeBytes,
        Counted::Activations => Unit::Count,
    }
}

fn annotations(slice: &Slice) -> Vec<DebugAnnotation> {
    let annotation = |key: Key, value| DebugAnnotation { name_iid: key as u64 + 1, value: Some(value) };
    let mut all = Vec::with_capacity(8);
    all.push(annotation(Key::Rank, Annotated::Number(slice.rank as u64)));
    slice.subject.tell(|key, value| {
        let value = match value {
            Value::Number(number) => Annotated::Number(number),
            Value::Length(nanoseconds) => Annotated::Double(nanoseconds as f64 / 1e3),
            Value::Action(action) => Annotated::Text(action.to_string()),
            Value::Slot(slot) => Annotated::Text(slot.to_string()),
        };
        all.push(annotation(key, value));
    });
    all
}
