//! `Picture`: timelines and schedules as something to look at, for the Python modules that show and save it.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use super::errors::UsageError;
use super::schedule::PySchedule;
use super::timeline::PyTimeline;
use crate::costs::Costs;
use crate::formats::grid;
use crate::lower::P2p;
use crate::picture::{Anchor, Ink, Options, Panel, Picture, Shape, Theme, Unit, layout, svg, text_on};
use crate::schedule::Kind;
use crate::simulate::simulate_network;
use crate::timeline::{CAUSES, Timeline};

/// What is to be seen of schedules and timelines, one above the other. `dualpipe_rs.drawing` shows and saves it; it is
/// no part of the public interface.
#[pyclass(frozen, name = "Picture", module = "dualpipe_rs._core")]
pub struct PyPicture {
    picture: Picture,
    /// The same as text.
    grids: Vec<Grid>,
}

enum Grid {
    Timeline(Box<Timeline>),
    Words(String),
}

/// What is drawn beside the cells, from a dictionary with these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Drawn {
    width: f64,
    causes: bool,
    critical_path: bool,
    memory: bool,
    fit: bool,
}

impl Drawn {
    fn options(&self) -> Options {
        let Drawn { width, causes, critical_path, memory, fit } = *self;
        Options { width, causes, critical_path, memory, fit }
    }
}

#[pymethods]
impl PyPicture {
    /// Of Schedules (with unit costs; marked where they break rules) and Timelines.
    #[new]
    fn new(py: Python<'_>, seen: Vec<Bound<'_, PyAny>>) -> PyResult<Self> {
        let mut made = PyPicture { picture: Picture { panels: Vec::new() }, grids: Vec::new() };
        for object in seen {
            let (panel, grid) = if let Ok(timeline) = object.cast::<PyTimeline>() {
                of_timeline(py, &timeline.get().0)?
            } else if let Ok(schedule) = object.cast::<PySchedule>() {
                of_schedule(py, schedule.get())?
            } else {
                let class = object.get_type().name()?;
                let words = format!("a picture is of Schedules and Timelines; this is of type {class}");
                return Err(UsageError::new_err(words));
            };
            made.picture.panels.push(panel);
            made.grids.push(grid);
        }
        Ok(made)
    }

    /// As SVG. `theme` is "light", "dark", or "auto", which follows the reader's.
    fn svg(&self, py: Python<'_>, theme: &str, drawn: Drawn) -> PyResult<String> {
        let theme = if theme == "auto" { None } else { Some(theme_of(theme)?) };
        let options = drawn.options();
        Ok(py.detach(|| svg(&layout(&self.picture, &options), theme)))
    }

    /// Width, height, and all shapes from the lowest to the topmost: ("rect", (x, y, width, height), fill, stroke, line
    /// width, opacity), ("line", points, colour, line width) or ("text", (x, y), text, size, anchor, colour), in
    /// pixels from the upper left; colours as "#rrggbb".
    fn shapes<'py>(
        &self,
        py: Python<'py>,
        theme: &str,
        drawn: Drawn,
    ) -> PyResult<(f64, f64, Bound<'py, PyList>)> {
        let theme = theme_of(theme)?;
        let options = drawn.options();
        let scene = py.detach(|| layout(&self.picture, &options));
        let shapes = PyList::empty(py);
        for shape in scene.shapes() {
            shapes.append(shape_of(py, shape, theme)?)?;
        }
        Ok((scene.width, scene.height, shapes))
    }

    /// The titles of all panels.
    fn title(&self) -> String {
        self.picture.panels.iter().map(|panel| panel.title.as_str()).collect::<Vec<_>>().join("; ")
    }

    /// What the canvas draws: a dictionary for each panel, of words and of arrays as little-endian bytes.
    fn panels<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.picture.panels.iter().map(|panel| columns(py, panel)).collect()
    }

    /// The colours of everything by name, in the light and in the dark.
    #[staticmethod]
    fn colours<'py>(py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        for (name, theme) in [("light", Theme::Light), ("dark", Theme::Dark)] {
            let colours = PyDict::new(py);
            let plain = [
                Ink::Paper,
                Ink::Text,
                Ink::Faint,
                Ink::Rule,
                Ink::Idle,
                Ink::Border,
                Ink::Critical,
                Ink::Wrong,
                Ink::Held,
                Ink::Optimizer,
            ];
            for ink in plain.into_iter().chain(CAUSES.map(Ink::Cause)) {
                colours.set_item(ink.name(), colour(ink, theme))?;
            }
            all.set_item(name, colours)?;
        }
        Ok(all)
    }

    /// The words for each kind (in the order F, I, W, B), and the name and words of each cause of idle time.
    #[staticmethod]
    fn words() -> (Vec<&'static str>, Vec<(&'static str, &'static str)>) {
        let causes = CAUSES.into_iter().map(|cause| (cause.name(), cause.words()));
        (Kind::ALL.map(Kind::words).to_vec(), causes.collect())
    }

    /// Each as a grid of text of at most about `width` columns.
    fn text(&self, width: usize) -> String {
        let texts = self.picture.panels.iter().zip(&self.grids).map(|(panel, grid)| match grid {
            Grid::Timeline(timeline) => format!("{}\n{}", panel.title, grid::grid(timeline, width)),
            Grid::Words(words) => words.clone(),
        });
        texts.collect::<Vec<_>>().join("\n\n")
    }
}

/// `View(first, *others, **options)`, with the memory curve unless told otherwise where `memory` says so.
pub fn show<'py>(
    first: &Bound<'py, PyAny>,
    others: &Bound<'py, PyTuple>,
    options: Option<&Bound<'py, PyDict>>,
    memory: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = first.py();
    let keywords = PyDict::new(py);
    keywords.set_item("memory", memory)?;
    options.map_or(Ok(()), |options| keywords.update(options.as_mapping()))?;
    let seen = std::iter::once(first.clone()).chain(others.iter());
    let seen = PyTuple::new(py, seen.collect::<Vec<_>>())?;
    py.import("dualpipe_rs.drawing.view")?.getattr("View")?.call(seen, Some(&keywords))
}

/// `save(first, path, *others, **options)`.
pub fn save(
    first: &Bound<'_, PyAny>,
    path: &Bound<'_, PyAny>,
    others: &Bound<'_, PyTuple>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    let given = [first.clone(), path.clone()].into_iter().chain(others.iter());
    let given = PyTuple::new(first.py(), given.collect::<Vec<_>>())?;
    let save = first.py().import("dualpipe_rs.drawing.files")?.getattr("save")?;
    save.call(given, options).map(|_| ())
}

fn of_timeline(py: Python<'_>, timeline: &Timeline) -> PyResult<(Panel, Grid)> {
    let panel = py.detach(|| Panel::of_timeline(timeline))?;
    Ok((panel, Grid::Timeline(Box::new(timeline.clone()))))
}

/// With unit costs; one that breaks rules as it stands, with what is wrong.
fn of_schedule(py: Python<'_>, schedule: &PySchedule) -> PyResult<(Panel, Grid)> {
    match schedule.verdict(py) {
        Ok(verified) => {
            let network = schedule.network(py, P2p::Eager)?;
            let timeline = py.detach(|| simulate_network(verified, network, &Costs::default()))?;
            of_timeline(py, &timeline)
        }
        Err(found) => {
            let panel = py.detach(|| Panel::of_broken(schedule.schedule(), found));
            Ok((panel, Grid::Words(found.report(schedule.schedule()))))
        }
    }
}

fn theme_of(name: &str) -> PyResult<Theme> {
    match name {
        "light" => Ok(Theme::Light),
        "dark" => Ok(Theme::Dark),
        _ => Err(UsageError::new_err(format!("theme is {name:?}; it is \"light\" or \"dark\""))),
    }
}

fn colour(ink: Ink, theme: Theme) -> String {
    let [red, green, blue] = ink.colour(theme);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn shape_of<'py>(py: Python<'py>, shape: &Shape, theme: Theme) -> PyResult<Bound<'py, PyAny>> {
    let named = |ink: Ink| colour(ink, theme);
    let tuple = match shape {
        Shape::Rect { area, fill, stroke, opacity } => {
            let place = (area.x, area.y, area.width, area.height);
            let line = stroke.map_or(0.0, |(_, width)| width);
            let stroke = stroke.map(|(ink, _)| named(ink));
            ("rect", place, fill.map(named), stroke, line, *opacity).into_pyobject(py)?.into_any()
        }
        Shape::Line { points, ink, width } => {
            ("line", points.clone(), named(*ink), *width).into_pyobject(py)?.into_any()
        }
        Shape::Text { at, text, size, anchor, ink } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            ("text", *at, text, *size, anchor, named(*ink)).into_pyobject(py)?.into_any()
        }
    };
    Ok(tuple)
}

/// The arrays of a panel.
struct Columns<'py>(Bound<'py, PyDict>);

impl Columns<'_> {
    fn bytes(&self, name: &str, bytes: impl Iterator<Item = u8>) -> PyResult<()> {
        let bytes: Vec<u8> = bytes.collect();
        self.0.set_item(name, PyBytes::new(self.0.py(), &bytes))
    }

    fn floats(&self, name: &str, values: impl Iterator<Item = f64>) -> PyResult<()> {
        self.bytes(name, values.flat_map(f64::to_le_bytes))
    }

    fn numbers(&self, name: &str, values: impl Iterator<Item = usize>) -> PyResult<()> {
        self.bytes(name, values.flat_map(|value| (value as u32).to_le_bytes()))
    }
}

/// Slots, waits, hops and what is held as arrays, each in the order of ranks; `..._firsts` says where each rank's begin.
fn columns<'py>(py: Python<'py>, panel: &Panel) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(py);
    all.set_item("title", &panel.title)?;
    all.set_item("unit", if panel.unit == Unit::Seconds { "s" } else { "" })?;
    all.set_item("length", panel.length)?;
    all.set_item("stages", panel.rows.iter().map(|row| row.stages.clone()).collect::<Vec<_>>())?;
    all.set_item("marks", panel.marks.iter().map(|m| (m.rank, m.slot, &m.message)).collect::<Vec<_>>())?;
    all.set_item("notes", &panel.notes)?;
    all.set_item("bytes", panel.held.bytes)?;
    let colours = action_colours(panel);
    all.set_item("on", texts_on(&colours))?;
    all.set_item("colours", colours)?;
    let columns = Columns(all);
    slots(&columns, panel)?;
    waits(&columns, panel)?;
    hops(&columns, panel)?;
    let levels = || panel.held.levels.iter();
    columns.numbers("held_firsts", firsts(levels().map(Vec::len)))?;
    columns.floats("held_time", levels().flatten().map(|level| level.time))?;
    columns.floats("held", levels().flatten().map(|level| level.held))?;
    let closing = panel.rows.iter().filter_map(|row| row.closing);
    columns.floats("closing", closing.flat_map(|closing| [closing.exchanged, closing.end]))?;
    Ok(columns.0)
}

fn firsts(lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    let ends = lengths.scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    std::iter::once(0).chain(ends)
}

/// Of a rank's stage by its place and the number of them: [places][chunk][kind], as "#rrggbb".
fn action_colours(panel: &Panel) -> Vec<Vec<Vec<String>>> {
    let most = panel.rows.iter().map(|row| row.stages.len()).max().unwrap_or(1);
    let kinds = |chunk, chunks| {
        let ink = |kind| colour(Ink::Action { kind, chunk, chunks }, Theme::Light);
        Kind::ALL.into_iter().map(ink).collect()
    };
    (0..=most).map(|chunks| (0..chunks).map(|chunk| kinds(chunk, chunks)).collect()).collect()
}

/// The colour of a text upon each.
fn texts_on(colours: &[Vec<Vec<String>>]) -> Vec<(String, String)> {
    let text = |name: &String| {
        let part = |at: usize| u8::from_str_radix(&name[at..at + 2], 16).unwrap_or(0);
        (name.clone(), colour(Ink::Mixed(text_on([part(1), part(3), part(5)])), Theme::Light))
    };
    colours.iter().flatten().flatten().map(text).collect()
}

/// The kinds of a slot's one or two actions, each with its chunk, stage and microbatch; a slot without a second has
/// kind 255 there.
fn slots(columns: &Columns<'_>, panel: &Panel) -> PyResult<()> {
    let slots = || panel.rows.iter().flat_map(|row| row.slots.iter().map(move |slot| (row, slot)));
    columns.numbers("slot_firsts", panel.firsts().into_iter())?;
    columns.floats("start", slots().map(|(_, (_, time))| time.start))?;
    columns.floats("end", slots().map(|(_, (_, time))| time.end))?;
    columns.bytes("critical", panel.rows.iter().flat_map(|row| &row.critical).map(|&on| on.into()))?;
    let first = || slots().map(|(row, (slot, _))| (row, Some(slot.parts().0)));
    let second = || slots().map(|(row, (slot, _))| (row, slot.parts().1));
    columns.bytes("kind", first().map(|(_, action)| number_of(action.map(|a| a.kind))))?;
    columns.bytes("kind2", second().map(|(_, action)| number_of(action.map(|a| a.kind))))?;
    let stage = |action: Option<crate::schedule::Action>| action.map_or(0, |a| a.stage as usize);
    let microbatch = |action: Option<crate::schedule::Action>| action.map_or(0, |a| a.microbatch as usize);
    columns.numbers("stage", first().map(|(_, action)| stage(action)))?;
    columns.numbers("stage2", second().map(|(_, action)| stage(action)))?;
    columns.numbers("microbatch", first().map(|(_, action)| microbatch(action)))?;
    columns.numbers("microbatch2", second().map(|(_, action)| microbatch(action)))
}

/// The place of a kind among all; 255 where there is none.
fn number_of(kind: Option<Kind>) -> u8 {
    let place = kind.and_then(|kind| Kind::ALL.iter().position(|&other| other == kind));
    place.map_or(255, |place| place as u8)
}

fn waits(columns: &Columns<'_>, panel: &Panel) -> PyResult<()> {
    let waits = || panel.rows.iter().flat_map(|row| &row.waits);
    columns.numbers("wait_firsts", firsts(panel.rows.iter().map(|row| row.waits.len())))?;
    columns.floats("wait_start", waits().map(|wait| wait.time.start))?;
    columns.floats("wait_end", waits().map(|wait| wait.time.end))?;
    columns.bytes("wait_cause", waits().map(|wait| wait.cause as u8))?;
    columns.bytes("wait_kind", waits().map(|wait| number_of(wait.action.map(|action| action.kind))))?;
    columns.numbers("wait_stage", waits().map(|wait| wait.action.map_or(0, |a| a.stage as usize)))?;
    columns.numbers("wait_microbatch", waits().map(|wait| wait.action.map_or(0, |a| a.microbatch as usize)))
}

/// Each hop by the number of the slot that made its tensor and of the slot that took it.
fn hops(columns: &Columns<'_>, panel: &Panel) -> PyResult<()> {
    let firsts = panel.firsts();
    let number = |(rank, slot): (usize, usize)| firsts[rank] + slot;
    columns.numbers("hop_from", panel.hops.iter().map(|hop| number(hop.from)))?;
    columns.numbers("hop_to", panel.hops.iter().map(|hop| number(hop.to)))?;
    columns.floats("hop_end", panel.hops.iter().map(|hop| hop.time.end))
}
