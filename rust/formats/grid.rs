//! A timeline as text: one line a rank, one cell of equal width a slot of time.
//!
//! ```text
//! rank 0 | F0  F1  F2  f4  i4  w4  ...
//! ```
//!
//! Capitals mark the stage of a rank's first module, small letters those of its others; a pair shows
//! both. Time is cut into cells of the shortest slot, or wider ones where the line would be too long.

use crate::schedule::{Action, Slot, Stage};
use crate::timeline::{Time, Timeline};

/// The narrowest cell that holds a letter and a two-digit microbatch.
const CELL: usize = 4;

/// No line is longer, whatever width is asked for.
const MOST_COLUMNS: usize = 10_000;

/// Draws every rank in at most about `width` columns, times being rounded to cells.
pub fn grid(timeline: &Timeline, width: usize) -> String {
    let label = format!("rank {}", timeline.ranks().saturating_sub(1)).len();
    let columns = width.saturating_sub(label + 3).clamp(CELL, MOST_COLUMNS);
    let shortest = (0..timeline.ranks())
        .flat_map(|rank| timeline.times_of(rank))
        .map(Time::duration)
        .filter(|&duration| duration > 0.0)
        .fold(f64::INFINITY, f64::min);
    let per_time = if shortest.is_finite() {
        (CELL as f64 / shortest).min(columns as f64 / timeline.makespan())
    } else {
        0.0
    };
    let start = timeline.start();
    let row = |rank| {
        let mut line = vec![' '; columns + 1];
        let own = timeline.slots(rank).next().map(|(slot, _)| slot.parts().0.stage);
        for (slot, time) in timeline.slots(rank) {
            let column = |time: f64| ((time - start) * per_time).round() as usize;
            let (from, to) = (column(time.start), column(time.end).min(columns));
            draw(&mut line[from.min(columns)..to], &text_of(slot, own));
        }
        let name = format!("rank {rank}");
        let cells: String = line.into_iter().collect();
        format!("{name:>label$} |{}", cells.trim_end())
    };
    let rows: Vec<String> = (0..timeline.ranks()).map(row).collect();
    rows.join("\n")
}

/// `F0`, or `F7:b3` for a pair.
fn text_of(slot: Slot, own: Option<Stage>) -> String {
    let text = |action: Action| {
        let letter = action.kind.letter().to_string();
        let letter = if Some(action.stage) == own { letter } else { letter.to_lowercase() };
        format!("{letter}{}", action.microbatch)
    };
    slot.actions().map(text).collect::<Vec<_>>().join(":")
}

/// Writes as much of the text as leaves one column free before the next cell, and fills the rest.
fn draw(cells: &mut [char], text: &str) {
    let Some(room) = cells.len().checked_sub(1) else { return };
    let fits = text.chars().count() <= room;
    let letters = text.chars().take(if fits { room } else { room.min(1) });
    let fill = letters.chain(std::iter::repeat('-'));
    for (cell, letter) in cells[..room].iter_mut().zip(fill) {
        *cell = letter;
    }
    if room == 0 {
        cells[0] = text.chars().next().unwrap_or('-');
    }
}
