//! One number for all, or one for each: by stage or rank ([`Numbers`]), by pair of stages or edge ([`Table`]).

use crate::error::Error;

#[derive(Debug, Clone, PartialEq)]
pub enum Numbers {
    One(f64),
    Each(Vec<f64>),
}

/// `Each` is a square, row by row: `[forward stage][backward stage]`, or `[from rank][to rank]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Table {
    One(f64),
    Each { size: usize, cells: Vec<f64> },
}

/// Stages are numbered with 16 bits.
pub const MOST_STAGES: usize = u16::MAX as usize;
/// The most rows of a table: its cells then take 512 MiB.
const MOST_ROWS: usize = 8192;

fn check_cut(name: &'static str, entries: usize, parts: usize, most: usize) -> Result<(), Error> {
    if entries.saturating_mul(parts) <= most {
        return Ok(());
    }
    let problem = format!("has {entries} entries, and each cut into {parts} makes more than {most}");
    Err(Error::Cost { name, problem })
}

pub(super) fn check_one(name: &'static str, cost: f64) -> Result<(), Error> {
    check_at(name, cost, String::new)
}

/// `place` says where the cost stands, in words such as " in entry 3".
fn check_at(name: &'static str, cost: f64, place: impl FnOnce() -> String) -> Result<(), Error> {
    if cost.is_finite() && cost >= 0.0 {
        return Ok(());
    }
    let problem = format!("is {cost:?}{}; a cost is a finite number that is not negative", place());
    Err(Error::Cost { name, problem })
}

impl Numbers {
    pub(super) fn check(&self, name: &'static str) -> Result<(), Error> {
        match self {
            Numbers::One(cost) => check_one(name, *cost),
            Numbers::Each(costs) => {
                let place = |index| move || format!(" in entry {index}");
                costs.iter().enumerate().try_for_each(|(index, &cost)| check_at(name, cost, place(index)))
            }
        }
    }

    /// One for each of `count` `things` of a schedule.
    pub(super) fn list(&self, name: &'static str, count: usize, things: &str) -> Result<Vec<f64>, Error> {
        match self {
            Numbers::One(number) => Ok(vec![*number; count]),
            Numbers::Each(numbers) if numbers.len() == count => Ok(numbers.clone()),
            Numbers::Each(numbers) => {
                let had = numbers.len();
                let problem = format!(
                    "has {had} entries and the schedule {count} {things}s; give one number, or one a {things}"
                );
                Err(Error::Cost { name, problem })
            }
        }
    }

    pub(super) fn cut(&self, name: &'static str, parts: usize) -> Result<Numbers, Error> {
        let share = parts as f64;
        Ok(match self {
            Numbers::One(number) => Numbers::One(number / share),
            Numbers::Each(numbers) => {
                check_cut(name, numbers.len(), parts, MOST_STAGES)?;
                let cut = numbers.iter().flat_map(|number| std::iter::repeat_n(number / share, parts));
                Numbers::Each(cut.collect())
            }
        })
    }

    pub fn scaled(&self, factor: f64, only: Option<(usize, usize)>) -> Numbers {
        let Some((index, count)) = only else {
            return match self {
                Numbers::One(number) => Numbers::One(number * factor),
                Numbers::Each(numbers) => Numbers::Each(numbers.iter().map(|n| n * factor).collect()),
            };
        };
        let mut numbers = match self {
            Numbers::One(number) => vec![*number; count],
            Numbers::Each(numbers) => numbers.clone(),
        };
        numbers[index] *= factor;
        Numbers::Each(numbers)
    }
}

impl Table {
    pub(super) fn check(&self, name: &'static str) -> Result<(), Error> {
        match self {
            Table::One(cost) => check_one(name, *cost),
            Table::Each { size, cells } => {
                let place = |cell: usize| move || format!(" at [{}][{}]", cell / size, cell % size);
                cells.iter().enumerate().try_for_each(|(cell, &cost)| check_at(name, cost, place(cell)))
            }
        }
    }

    /// All multiplied, or one cell of a square alone.
    pub(super) fn scaled(&self, factor: f64, only: Option<(usize, usize)>) -> Table {
        let mut scaled = self.clone();
        match (&mut scaled, only) {
            (Table::One(number), _) => *number *= factor,
            (Table::Each { cells, .. }, None) => cells.iter_mut().for_each(|cell| *cell *= factor),
            (Table::Each { cells, .. }, Some((cell, _))) => cells[cell] *= factor,
        }
        scaled
    }

    pub(super) fn check_bandwidth(&self) -> Result<(), Error> {
        match self.all().iter().find(|&&bandwidth| bandwidth.is_nan() || bandwidth <= 0.0) {
            None => Ok(()),
            Some(bandwidth) => {
                let problem = format!("is {bandwidth:?}; it is more than 0, in bytes a unit of time");
                Err(Error::Cost { name: "p2p_bandwidth", problem })
            }
        }
    }

    fn all(&self) -> &[f64] {
        match self {
            Table::One(number) => std::slice::from_ref(number),
            Table::Each { cells, .. } => cells,
        }
    }

    /// Refuses a square of another size than a schedule's.
    pub(super) fn check_size(&self, name: &'static str, count: usize, things: &str) -> Result<(), Error> {
        match self {
            Table::Each { size, .. } if *size != count => {
                let problem = format!(
                    "is a table of {size} x {size} and the schedule has {count} {things}s; give one number, or a \
                     table of one row and one column a {things}"
                );
                Err(Error::Cost { name, problem })
            }
            _ => Ok(()),
        }
    }

    #[inline]
    pub fn at(&self, row: usize, column: usize) -> f64 {
        match self {
            Table::One(number) => *number,
            Table::Each { size, cells } => cells[row * size + column],
        }
    }

    /// Cell by cell; both are of one size, if they are squares.
    pub(super) fn zip(&self, other: &Table, f: impl Fn(f64, f64) -> f64) -> Table {
        match (self, other) {
            (Table::One(one), Table::One(two)) => Table::One(f(*one, *two)),
            (Table::Each { size, .. }, _) | (_, Table::Each { size, .. }) => {
                let cells = (0..size * size).map(|i| (i / size, i % size));
                let cells = cells.map(|(row, column)| f(self.at(row, column), other.at(row, column)));
                Table::Each { size: *size, cells: cells.collect() }
            }
        }
    }

    pub(super) fn cut(&self, name: &'static str, parts: usize) -> Result<Table, Error> {
        let share = parts as f64;
        Ok(match self {
            Table::One(number) => Table::One(number / share),
            Table::Each { size, .. } => {
                check_cut(name, *size, parts, MOST_ROWS)?;
                let size = size * parts;
                let cells = (0..size * size).map(|i| self.at(i / size / parts, i % size / parts) / share);
                Table::Each { size, cells: cells.collect() }
            }
        })
    }
}
