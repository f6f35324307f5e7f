//! The row of a rank: each slot as a cell with its microbatch, fused pairs in one border; where cells would be too
//! narrow to be told apart, columns of their mean colour.

use super::Ink;
use super::layout::{FONT, Options, Scale};
use super::palette::{Rgb, action_colour};
use super::panel::{Panel, Row};
use super::scene::{Anchor, Area, Cell, Item, Scene, Shape, text_width};
use crate::schedule::{Action, Kind, Rank, Slot};
use crate::timeline::Time;

/// Cells that are narrower than this in the mean become columns.
const NARROWEST: f64 = 2.5;
/// The smallest size in which a microbatch is written.
const SMALLEST: f64 = 7.0;
/// The width of such a column.
const COLUMN: f64 = 3.0;

pub fn draw(
    scene: &mut Scene,
    (number, panel): (usize, &Panel),
    rank: Rank,
    options: &Options,
    scale: &Scale,
    area: Area,
) {
    let row = &panel.rows[rank];
    let gap = if area.height >= 10.0 { 2.0 } else { 0.0 };
    let area = Area { height: area.height - gap, ..area };
    scene.draw(Shape::filled(area, Ink::Idle));
    if options.causes {
        causes(scene, row, scale, area);
    }
    closing(scene, row, scale, area);
    let busy: f64 = row.slots.iter().map(|(_, time)| time.duration()).sum();
    if busy * scale.factor < NARROWEST * row.slots.len() as f64 && busy > 0.0 {
        columns(scene, row, scale, area);
    } else {
        cells(scene, (number, panel), rank, scale, area);
    }
    if options.critical_path {
        critical(scene, row, scale, area);
    }
    for mark in panel.marks.iter().filter(|mark| mark.rank == rank) {
        if let Some((_, time)) = row.slots.get(mark.slot) {
            let around = grown(placed(*time, scale, area), 1.0);
            scene.draw(Shape::outline(around, Ink::Wrong, 2.5));
        }
    }
}

fn placed(time: Time, scale: &Scale, area: Area) -> Area {
    Area {
        x: scale.x(time.start),
        width: time.duration() * scale.factor,
        ..area
    }
}

fn grown(area: Area, by: f64) -> Area {
    Area {
        x: area.x - by,
        y: area.y - by,
        width: area.width + 2.0 * by,
        height: area.height + 2.0 * by,
    }
}

fn causes(scene: &mut Scene, row: &Row, scale: &Scale, area: Area) {
    for wait in row.waits.iter().filter(|wait| wait.time.duration() * scale.factor >= 0.5) {
        scene.draw(Shape::filled(placed(wait.time, scale, area), Ink::Cause(wait.cause)));
    }
}

/// The optimizer, after the last slot.
fn closing(scene: &mut Scene, row: &Row, scale: &Scale, area: Area) {
    let Some(closing) = row.closing.filter(|closing| closing.end > closing.exchanged) else { return };
    let area = placed(Time { start: closing.exchanged, end: closing.end }, scale, area);
    scene.draw(Shape::filled(area, Ink::Optimizer));
    let words = "optimizer";
    if text_width(words, FONT - 1.0) < area.width && area.height > FONT {
        scene.draw(Shape::text(middle(area), words, FONT - 1.0, Anchor::Middle, Ink::Border));
    }
}

fn middle(area: Area) -> (f64, f64) {
    (area.x + area.width / 2.0, area.y + area.height / 2.0 + 0.35 * FONT)
}

fn cells(scene: &mut Scene, (number, panel): (usize, &Panel), rank: Rank, scale: &Scale, area: Area) {
    let row = &panel.rows[rank];
    let mut waits = row.waits.iter().peekable();
    for (index, &(slot, time)) in row.slots.iter().enumerate() {
        let mut before = Vec::new();
        while let Some(wait) = waits.next_if(|wait| wait.slot <= index) {
            before.push(format!("{} {}", wait.cause.words(), super::panel::short(wait.time.duration())));
        }
        let place = placed(time, scale, area);
        let wrong = panel.marks.iter().filter(|mark| (mark.rank, mark.slot) == (rank, index));
        scene.items.push(Item::Cell(Cell {
            panel: number,
            rank,
            index,
            slot,
            time,
            words: words(slot, time, &before, wrong.map(|mark| mark.message.as_str())),
            shapes: shapes(row, slot, place),
        }));
    }
}

/// What a pointer over a cell is told.
fn words<'a>(slot: Slot, time: Time, before: &[String], wrong: impl Iterator<Item = &'a str>) -> String {
    let action = |action: Action| {
        format!("{} of microbatch {}, stage {}", action.kind.words(), action.microbatch, action.stage)
    };
    let actions: Vec<String> = slot.actions().map(action).collect();
    let mut lines = vec![actions.join(" & ")];
    lines.push(format!("{} to {}", super::panel::short(time.start), super::panel::short(time.end)));
    if !before.is_empty() {
        lines.push(format!("waited before: {}", before.join(", ")));
    }
    lines.extend(wrong.map(str::to_string));
    lines.join("\n")
}

/// A filled area and the microbatch in it for each action, and one border around a pair. Of a pair the areas stand
/// side by side, as in the published figures, though both run all the time.
fn shapes(row: &Row, slot: Slot, place: Area) -> Vec<Shape> {
    let line = match place.width {
        width if width >= 12.0 => 1.0,
        width if width >= 6.0 => 0.5,
        _ => 0.0,
    };
    let inner = |area: Area| Area { width: (area.width - line).max(0.0), ..area };
    let mut shapes = Vec::new();
    match slot.parts() {
        (action, None) => fill(&mut shapes, row, action, inner(place)),
        (first, Some(second)) => {
            let cut = place.width / 3.0;
            fill(&mut shapes, row, first, Area { width: cut, ..place });
            let rest = Area { x: place.x + cut, width: place.width - cut, ..place };
            fill(&mut shapes, row, second, inner(rest));
            if place.width >= 6.0 && place.height >= 6.0 {
                let inside = grown(Area { width: place.width - line, ..place }, -0.75);
                shapes.push(Shape::outline(inside, Ink::Border, 1.5));
            }
        }
    }
    shapes
}

fn fill(shapes: &mut Vec<Shape>, row: &Row, action: Action, area: Area) {
    let Action { kind, microbatch, stage } = action;
    let (chunk, chunks) = row.chunk(stage);
    shapes.push(Shape::filled(area, Ink::Action { kind, chunk, chunks }));
    let text = microbatch.to_string();
    let size = FONT.min(area.height - 3.0).min((area.width - 1.0) / text_width(&text, 1.0));
    if size >= SMALLEST {
        let at = (area.x + area.width / 2.0, area.y + area.height / 2.0 + 0.35 * size);
        shapes.push(Shape::text(at, text, size, Anchor::Middle, Ink::On { kind, chunk, chunks }));
    }
}

fn critical(scene: &mut Scene, row: &Row, scale: &Scale, area: Area) {
    // Slots that follow each other without a gap are one line.
    let mut line: Option<Area> = None;
    let path = row.slots.iter().zip(&row.critical).filter(|(_, critical)| **critical);
    for ((_, time), _) in path {
        let next = Area {
            y: area.y + area.height - 2.0,
            height: 3.0,
            ..placed(*time, scale, area)
        };
        line = Some(match line {
            Some(open) if open.x + open.width + 0.5 >= next.x => {
                Area { width: next.x + next.width - open.x, ..open }
            }
            open => {
                open.into_iter().for_each(|done| scene.draw(Shape::filled(done, Ink::Critical)));
                next
            }
        });
    }
    line.into_iter().for_each(|done| scene.draw(Shape::filled(done, Ink::Critical)));
}

/// The mean colour of what runs in each column, as opaque as the rank is busy; equal neighbours are one.
fn columns(scene: &mut Scene, row: &Row, scale: &Scale, area: Area) {
    let mut open: Option<(Area, Rgb, f64)> = None;
    let mut flush = |open: Option<(Area, Rgb, f64)>| {
        if let Some((area, colour, opacity)) = open.filter(|&(_, _, opacity)| opacity > 0.0) {
            let fill = Some(Ink::Mixed(colour));
            scene.draw(Shape::Rect { area, fill, stroke: None, opacity });
        }
    };
    for (number, mean) in means(row, scale).into_iter().enumerate() {
        let (colour, opacity) = mean.colour();
        let x = area.x + number as f64 * COLUMN;
        let next = Area { x, width: COLUMN.min(area.x + area.width - x), ..area };
        open = match open {
            Some((before, same, busy)) if (same, busy) == (colour, opacity) => {
                Some((Area { width: next.x + next.width - before.x, ..before }, same, busy))
            }
            other => {
                flush(other);
                Some((next, colour, opacity))
            }
        };
    }
    flush(open);
}

/// How much of a column is covered, and by which colours.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    covered: f64,
    sum: [f64; 3],
}

impl Mean {
    fn add(&mut self, share: f64, colour: Rgb) {
        self.covered += share;
        self.sum = std::array::from_fn(|i| self.sum[i] + share * colour[i] as f64);
    }

    /// In steps so coarse that a steady state is one colour, and so fine that no eye sees them.
    fn colour(&self) -> (Rgb, f64) {
        if self.covered < 1e-3 {
            return ([0; 3], 0.0);
        }
        let part = |sum: f64| ((sum / self.covered / 8.0).round() * 8.0).min(255.0) as u8;
        (self.sum.map(part), (self.covered.min(1.0) * 16.0).round() / 16.0)
    }
}

fn means(row: &Row, scale: &Scale) -> Vec<Mean> {
    let count = (scale.width / COLUMN).ceil() as usize;
    let mut means = vec![Mean::default(); count];
    for &(slot, time) in &row.slots {
        let colour = colour_of(row, slot);
        let (from, to) = (time.start * scale.factor / COLUMN, time.end * scale.factor / COLUMN);
        let touched = from as usize..(to.ceil() as usize).min(count);
        for (number, mean) in means.iter_mut().enumerate().take(touched.end).skip(touched.start) {
            let share = to.min(number as f64 + 1.0) - from.max(number as f64);
            mean.add(share.max(0.0), colour);
        }
    }
    means
}

fn colour_of(row: &Row, slot: Slot) -> Rgb {
    let colour = |action: Action| {
        let (chunk, chunks) = row.chunk(action.stage);
        action_colour(action.kind, chunk, chunks)
    };
    match slot.parts() {
        (action, None) => colour(action),
        (first, Some(second)) => super::palette::mix(colour(first), colour(second), 2.0 / 3.0),
    }
}

/// The kinds that a panel has, each with the chunks in which it occurs; for the legend.
pub fn kinds(panel: &Panel) -> Vec<Kind> {
    let has = |kind: &Kind| {
        let mut slots = panel.rows.iter().flat_map(|row| &row.slots);
        slots.any(|(slot, _)| slot.actions().any(|action| action.kind == *kind))
    };
    Kind::ALL.into_iter().filter(has).collect()
}
