//! A schedule as the `compute_only` CSV of torch.distributed.pipelining, both ways: one row a rank, no header.
//!
//! ```text
//! 0F0,3F0,(0F1;3B0)OVERLAP_F_B,3I1,3W1
//! ```
//!
//! The file names neither sizes nor placement: they are read off the cells, or given. Idle cells, which torch
//! writes as empty ones, are passed over. A stage on two ranks (DualPipe, Chimera) cannot be written: torch
//! keeps one rank a stage. Strict as text.rs, and with the same bound on memory.

use std::fmt::Write;

use super::cells::{Line, quote, slot};
use crate::error::Error;
use crate::schedule::{Kind, Placement, Schedule, Shape, Slot, Stage};

const PAIR: &str = "OVERLAP_F_B";

/// Writes the rows, each ended by a newline.
pub fn write(schedule: &Schedule) -> Result<String, Error> {
    if schedule.shape().placement() == Placement::Bidirectional {
        return Err(Error::Format(format!(
            "{} cannot be written as torch's CSV: each of its stages lives on two ranks, and torch keeps one \
             rank a stage",
            schedule.describe()
        )));
    }
    let mut text = String::new();
    for row in schedule.rows() {
        for (index, slot) in row.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let pair = if matches!(slot, Slot::Pair(..)) { PAIR } else { "" };
            let _ = write!(text, "{comma}{slot}{pair}"); // writing to a String cannot fail
        }
        text.push('\n');
    }
    Ok(text)
}

/// What the file does not say. What is `None` is read off the cells.
#[derive(Debug, Default)]
pub struct Given {
    pub name: String,
    pub placement: Option<Placement>,
    pub stages: Option<usize>,
    pub microbatches: Option<usize>,
}

/// Reads what [`write`] and torch write.
pub fn read(text: &str, given: Given) -> Result<Schedule, Error> {
    if text.starts_with('\u{feff}') {
        return Err(Error::Format("the text begins with a byte order mark; leave it out".to_string()));
    }
    if given.stages == Some(0) || given.microbatches == Some(0) {
        return Err(Error::Format("num_stages and num_microbatches are at least 1".to_string()));
    }
    let lines = text.trim_end_matches(['\n', '\r']).lines().enumerate();
    if lines.clone().nth(Stage::MAX as usize).is_some() {
        let message = format!("there are more than {} rows; each rank, one a row, holds a stage", Stage::MAX);
        return Err(Error::Format(message));
    }
    let rows = lines.map(|(index, text)| row(Line { number: index + 1, text }));
    let rows = rows.collect::<Result<Vec<_>, Error>>()?;
    if rows.is_empty() {
        return Err(Error::Format("the text holds no row; it has one a rank".to_string()));
    }
    let shape = shape(&rows, &given)?;
    let forward_only = rows.iter().flatten().flat_map(Slot::actions).all(|action| action.kind == Kind::F);
    Schedule::new(given.name, if forward_only { shape.for_inference() } else { shape }, rows)
}

fn row(line: Line) -> Result<Vec<Slot>, Error> {
    let mut row = Vec::new();
    let mut offset = 0;
    for cell in line.text.split(',') {
        let word = cell.trim();
        let at = offset + (cell.len() - cell.trim_start().len());
        offset += cell.len() + 1;
        if !word.is_empty() {
            row.push(read_cell(line, at, word)?);
        }
    }
    if row.is_empty() {
        return Err(line.error(0, "this row is empty; every rank has something to compute"));
    }
    Ok(row)
}

fn read_cell(line: Line, offset: usize, word: &str) -> Result<Slot, Error> {
    if word.starts_with('(') {
        let Some(pair) = word.strip_suffix(PAIR) else {
            let message = format!("{} is not a pair such as (0F7;7B3){PAIR}", quote(word));
            return Err(line.error(offset, message));
        };
        return slot(line, offset, pair);
    }
    if ["SEND_", "RECV_", "SHARD", "REDUCE_GRAD"].iter().any(|other| word.contains(other)) {
        let message =
            format!("{} is no compute action; write the file with format=\"compute_only\"", quote(word));
        return Err(line.error(offset, message));
    }
    slot(line, offset, word)
}

/// The smallest sizes that hold all cells, and the first placement that puts each where it stands.
fn shape(rows: &[Vec<Slot>], given: &Given) -> Result<Shape, Error> {
    let actions = || rows.iter().flatten().flat_map(Slot::actions);
    let stages = given.stages.unwrap_or_else(|| actions().map(|a| a.stage as usize + 1).max().unwrap_or(0));
    let microbatches =
        given.microbatches.unwrap_or_else(|| actions().map(|a| a.microbatch as usize + 1).max().unwrap_or(0));
    let (forwards, cells) = (stages.saturating_mul(microbatches), actions().count());
    if cells < forwards {
        // So that the tables of the verifier are never larger than a multiple of the text.
        let sizes = format!("{stages} stages and {microbatches} microbatches");
        let message = format!("{sizes} take {forwards} forwards, and there are {cells} actions");
        return Err(Error::Format(message));
    }
    let shape = |placement| Shape::new(placement, rows.len(), stages, microbatches);
    let shape = match given.placement {
        Some(placement) => shape(placement)?,
        None => {
            let one_rank_a_stage = Placement::ALL.into_iter().filter(|&p| p != Placement::Bidirectional);
            let fitting = one_rank_a_stage.filter_map(|placement| shape(placement).ok());
            fitting.into_iter().find(|shape| stands_right(rows, shape)).ok_or_else(|| {
                Error::Format(format!(
                    "no placement (linear, looped, v, wave) puts {stages} stages on {} ranks as these rows do; \
                     give placement=..., and verify() says which cells are wrong",
                    rows.len()
                ))
            })?
        }
    };
    if actions().all(|action| shape.contains(action)) {
        return Ok(shape);
    }
    Err(Error::Format(format!(
        "a cell is out of range of {stages} stages and {microbatches} microbatches; give the true sizes, or \
         leave them out"
    )))
}

fn stands_right(rows: &[Vec<Slot>], shape: &Shape) -> bool {
    rows.iter().enumerate().all(|(rank, row)| {
        let mut actions = row.iter().flat_map(Slot::actions);
        actions.all(|action| shape.rank_of(action.stage, action.microbatch) == rank)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "0F0,1F0,0F1,1B0,(1F1;0B0)OVERLAP_F_B,1B1,0I1,0W1\n";

    fn read_plain(text: &str) -> Result<Schedule, Error> {
        read(text, Given { name: "torch".into(), ..Given::default() })
    }

    #[test]
    fn round_trips() {
        assert_eq!(write(&read_plain(TEXT).unwrap()).unwrap(), TEXT);
        let with_idle_cells = TEXT.replace("1B1,", ",1B1 , ,").replace('\n', ",\r\n");
        assert_eq!(write(&read_plain(&with_idle_cells).unwrap()).unwrap(), TEXT);
    }

    #[test]
    fn says_line_and_column() {
        for (from, to, column) in [
            ("1B1", "0F0garbage", 38),
            ("1B1", "1B", 38),
            ("1B1", "1SEND_F1", 38),
            ("1B1", "\"1B1\"", 38),
            ("1B1", " 1B01", 39),
            ("OVERLAP_F_B", "", 17),
            (";0B0)", ";0F0)", 17),
        ] {
            match read_plain(&TEXT.replacen(from, to, 1)) {
                Err(Error::Text { line: 1, column: c, .. }) => assert_eq!(c, column, "{from} -> {to}"),
                other => panic!("{from} -> {to}: {other:?}"),
            }
        }
    }

    #[test]
    fn refuses_what_it_cannot_place() {
        assert!(matches!(read_plain(""), Err(Error::Format(_))));
        assert!(matches!(read_plain("0F0\n\n0B0\n"), Err(Error::Text { line: 2, .. })));
        assert!(matches!(read_plain("0F0,0B0\n0F1,0B1\n"), Err(Error::Format(_))));
        assert!(matches!(read_plain("65535F0\n"), Err(Error::Format(_))));
        assert!(matches!(read_plain("0F999999999\n"), Err(Error::Format(_))));
    }

    proptest! {
        #[test]
        fn never_panics(text in "[0-9FIWB();,\n \r\"A-Z_\\PC]{0,80}") {
            if let Ok(schedule) = read_plain(&text) {
                prop_assert_eq!(read_plain(&write(&schedule).unwrap()).unwrap(), schedule);
            }
        }
    }
}
