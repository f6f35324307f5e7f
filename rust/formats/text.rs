//! A schedule as text, both ways: one `#` line with the name, the placement and the sizes, then one
//! row a rank.
//!
//! ```text
//! # name=dualpipev placement=v ranks=1 stages=2 microbatches=2
//! 0F0 1F0 0F1 1B0 (1F1;0B0) 1B1 0I1 0W1
//! ```
//!
//! The reader is strict: what it takes, it writes back the same (but for spaces, and the order of the
//! fields in the first line), and what it refuses, it refuses with line and column, counted in bytes
//! from 1. It never allocates more than a fixed multiple of the text.

use std::fmt::Write;

use super::cells::{Line, quote, slot, small_number};
use crate::error::Error;
use crate::schedule::{Action, Placement, Schedule, Shape, Slot};

const HEADER: &str = "# name=NAME placement=PLACEMENT ranks=N stages=N microbatches=N [forward_only=true]";

/// Writes the `#` line and the rows, each line ended by a newline.
pub fn write(schedule: &Schedule) -> String {
    let shape = schedule.shape();
    let mut text = format!(
        "# name={} placement={} ranks={} stages={} microbatches={}",
        schedule.name(),
        shape.placement().name(),
        shape.ranks(),
        shape.stages(),
        shape.microbatches(),
    );
    text.push_str(if shape.forward_only() { " forward_only=true\n" } else { "\n" });
    for row in schedule.rows() {
        for (index, slot) in row.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            let _ = write!(text, "{space}{slot}"); // writing to a String cannot fail
        }
        text.push('\n');
    }
    text
}

/// Reads what [`write`] writes.
pub fn read(text: &str) -> Result<Schedule, Error> {
    let mut lines = text.lines().enumerate().map(|(index, line)| Line { number: index + 1, text: line });
    let first = lines.next().unwrap_or(Line { number: 1, text: "" });
    let header = Header::read(first)?;
    let written = text.trim_end().lines().count().max(1) - 1;
    let ranks = header.shape.ranks();
    let rows = lines
        .take(written.min(ranks + 1))
        .map(|line| row(line, &header.shape))
        .collect::<Result<Vec<Vec<Slot>>, Error>>()?;
    if written != ranks {
        let message = format!("the first line says ranks={ranks}, and there are {written} rows");
        return Err(first.error(0, message));
    }
    let schedule = Schedule::new(header.name, header.shape, rows)?;
    let actions: usize = schedule.rows().iter().flatten().map(|slot| slot.actions().count()).sum();
    let forwards = header.shape.tensors() / 2;
    if actions < forwards {
        // So that the tables of the verifier are never larger than a multiple of the text.
        let message = format!("these sizes take {forwards} forwards, and there are {actions} actions");
        return Err(first.error(0, message));
    }
    Ok(schedule)
}

struct Header {
    name: String,
    shape: Shape,
}

/// The fields of the first line, in the order in which they are written.
const FIELDS: [&str; 6] = ["name", "placement", "ranks", "stages", "microbatches", "forward_only"];

impl Header {
    fn read(line: Line) -> Result<Header, Error> {
        let fields = Fields::read(line)?;
        let (offset, placement) = fields.get("placement")?;
        let placement = self::placement(placement).map_err(|why| line.error(offset, why.to_string()))?;
        let (ranks, stages) = (fields.number("ranks")?, fields.number("stages")?);
        let shape = Shape::new(placement, ranks, stages, fields.number("microbatches")?)
            .map_err(|why| line.error(0, why.to_string()))?;
        let shape = match fields.find("forward_only") {
            None => shape,
            Some((_, "true")) => shape.for_inference(),
            Some((offset, value)) => {
                let message = format!("forward_only={} is not forward_only=true", quote(value));
                return Err(line.error(offset, message));
            }
        };
        Ok(Header { name: fields.get("name")?.1.to_string(), shape })
    }
}

/// The placement of this name.
pub fn placement(name: &str) -> Result<Placement, Error> {
    Placement::from_name(name).ok_or_else(|| {
        let names = Placement::ALL.map(Placement::name).join(", ");
        Error::Format(format!("there is no placement {}; the placements are {names}", quote(name)))
    })
}

/// A name that the first line can hold.
pub fn checked_name(name: &str) -> Result<String, Error> {
    if name.contains(|c: char| c.is_ascii_whitespace()) {
        return Err(Error::Format(format!("name is {}; it is one word", quote(name))));
    }
    Ok(name.to_string())
}

/// The `name=value` words of the first line.
struct Fields<'a> {
    line: Line<'a>,
    /// By `FIELDS`: a value and where it stands.
    values: [Option<(usize, &'a str)>; FIELDS.len()],
}

impl<'a> Fields<'a> {
    fn read(line: Line<'a>) -> Result<Self, Error> {
        let mut tokens = line.tokens();
        if tokens.next().map(|(_, word)| word) != Some("#") {
            let found = match line.text.chars().next() {
                None => ", and this one is empty",
                Some('\u{feff}') => ", and this one with a byte order mark",
                _ => "",
            };
            return Err(line.error(0, format!("a schedule begins with a line {HEADER:?}{found}")));
        }
        let mut values = [None; FIELDS.len()];
        for (offset, word) in tokens {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let known = FIELDS.iter().position(|&name| name == key && word.len() > key.len());
            let Some(index) = known else {
                let message = format!("{} is not a field of the line {HEADER:?}", quote(word));
                return Err(line.error(offset, message));
            };
            if values[index].replace((offset + key.len() + 1, value)).is_some() {
                return Err(line.error(offset, format!("{} is given twice", quote(word))));
            }
        }
        Ok(Fields { line, values })
    }

    fn find(&self, name: &str) -> Option<(usize, &'a str)> {
        self.values[FIELDS.iter().position(|&field| field == name)?]
    }

    fn get(&self, name: &str) -> Result<(usize, &'a str), Error> {
        self.find(name).ok_or_else(|| self.line.error(0, format!("{name}= is missing from {HEADER:?}")))
    }

    fn number(&self, name: &str) -> Result<usize, Error> {
        let (offset, value) = self.get(name)?;
        let message =
            || format!("{} is not a whole number below 10⁹ without sign and leading zeros", quote(value));
        let number = small_number(value).ok_or_else(|| self.line.error(offset, message()))?;
        Ok(number as usize)
    }
}

fn row(line: Line, shape: &Shape) -> Result<Vec<Slot>, Error> {
    let slots = line
        .tokens()
        .map(|(offset, word)| {
            let slot = slot(line, offset, word)?;
            match slot.actions().find(|&action| !shape.contains(action)) {
                None => Ok(slot),
                Some(action) => Err(line.error(offset, out_of_range(shape, action))),
            }
        })
        .collect::<Result<Vec<Slot>, Error>>()?;
    if slots.is_empty() {
        return Err(line.error(0, "this row is empty; every rank has something to compute"));
    }
    Ok(slots)
}

fn out_of_range(shape: &Shape, action: Action) -> String {
    format!(
        "{action} is out of range: stages are 0 to {} and microbatches 0 to {}",
        shape.stages() - 1,
        shape.microbatches() - 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "# name=dualpipev placement=v ranks=1 stages=2 microbatches=2\n\
                        0F0 1F0 0F1 1B0 (1F1;0B0) 1B1 0I1 0W1\n";

    #[test]
    fn round_trips() {
        assert_eq!(write(&read(TEXT).unwrap()), TEXT);
        let forward = read(TEXT).unwrap().forward_only();
        assert_eq!(read(&write(&forward)).unwrap(), forward);
    }

    #[test]
    fn says_line_and_column() {
        for (from, to, line, column) in [
            ("1B1", "0F0garbage", 2, 27),
            ("1B1", "1X1", 2, 27),
            ("1B1", "B1", 2, 27),
            ("1B1", "1B", 2, 27),
            ("1B1", "01B1", 2, 27),
            ("1B1", "1B4294967296", 2, 27),
            ("1B1", "2B1", 2, 27),
            ("1B1", "1B2", 2, 27),
            ("0F0 1F0 0F1 1B0 (1F1;0B0) 1B1 0I1 0W1", "", 1, 1),
            ("0F0 1F0 0F1 1B0 (1F1;0B0) 1B1 0I1 0W1", "0F0", 1, 1),
            ("0F0", "\n0F0", 2, 1),
            ("0B0)", "0B0", 2, 17),
            (";0B0)", ";0F0)", 2, 17),
            ("placement=v", "placement=u", 1, 28),
            ("ranks=1", "ranks=2", 1, 1),
            ("ranks=1", "ranks=-1", 1, 36),
            ("ranks=1 ", "", 1, 1),
            ("ranks=1", "ranks=1 ranks=1", 1, 38),
            ("# name", "name", 1, 1),
        ] {
            let text = TEXT.replacen(from, to, 1);
            match read(&text) {
                Err(Error::Text { line: l, column: c, .. }) => assert_eq!((l, c), (line, column), "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(# name=x placement=(v|looped) ranks=[0-9]{1,3} stages=[0-9]{1,10} microbatches=[0-9]{1,12}\n)?[0-9FIWB();# \n\\PC]{0,80}") {
            if let Ok(schedule) = read(&text) {
                prop_assert_eq!(read(&write(&schedule)).unwrap(), schedule);
            }
        }
    }
}
