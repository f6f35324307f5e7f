//! Where everything goes: panels one above the other, the rows of ranks in each, a curve of what they hold below
//! them, the axis of time, the legend. All in pixels; nothing here knows a file format.

use super::panel::{Panel, Unit, short, si};
use super::scene::{Anchor, Area, Scene, Shape, text_width};
use super::{Ink, Picture, curve, legend, rows};

/// What is drawn beside the cells, and how wide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// In pixels, of the whole picture.
    pub width: f64,
    /// Idle time shaded by what was waited for.
    pub causes: bool,
    pub critical_path: bool,
    /// A curve below of what the fullest rank holds.
    pub memory: bool,
    /// Each panel as wide as its own makespan, in place of one axis for all.
    pub fit: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            width: 1120.0,
            causes: false,
            critical_path: false,
            memory: false,
            fit: false,
        }
    }
}

pub const FONT: f64 = 11.0;
const MARGIN: f64 = 12.0;
const TITLE: f64 = 24.0;
const AXIS: f64 = 22.0;
const CURVE: f64 = 64.0;
const LINE: f64 = 16.0;
/// Rows are as high as this where there are few, and lower where all would be higher than [`ROWS`].
const HIGHEST_ROW: f64 = 26.0;
const LOWEST_ROW: f64 = 3.0;
const ROWS: f64 = 640.0;
/// At most so many notes are written out.
const NOTES: usize = 8;

/// Where a panel's times are on the page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    pub left: f64,
    pub width: f64,
    /// Pixels in a unit of time.
    pub factor: f64,
}

impl Scale {
    pub fn x(&self, time: f64) -> f64 {
        self.left + time * self.factor
    }
}

pub fn layout(picture: &Picture, options: &Options) -> Scene {
    let options = &Options { width: options.width.clamp(240.0, 20_000.0), ..*options };
    let mut scene = Scene { width: options.width, height: 0.0, items: Vec::new() };
    let longest = picture.panels.iter().map(|panel| panel.length).fold(0.0, f64::max);
    let mut y = MARGIN / 2.0;
    for (number, panel) in picture.panels.iter().enumerate() {
        let length = if options.fit { panel.length } else { longest };
        let own_axis = options.fit || number + 1 == picture.panels.len() || has_other_unit(picture, number);
        let scale = scale(picture, options, length);
        y = self::panel(&mut scene, (number, panel), options, &scale, most_held(picture, panel), y);
        if own_axis && !panel.is_broken() {
            axis(&mut scene, panel.unit, &scale, length, y);
            y += AXIS;
        }
        y += MARGIN / 2.0;
    }
    y = legend::draw(&mut scene, picture, options, y + 2.0);
    scene.height = y + MARGIN / 2.0;
    let whole = Area { x: 0.0, y: 0.0, width: scene.width, height: scene.height };
    scene.items.insert(0, super::Item::Shape(Shape::filled(whole, Ink::Paper)));
    scene
}

/// The most that any rank holds, of all panels that count it alike: their curves have one scale.
fn most_held(picture: &Picture, panel: &Panel) -> f64 {
    let alike = picture.panels.iter().filter(|other| other.held.bytes == panel.held.bytes);
    alike.map(Panel::most_held).fold(0.0, f64::max)
}

/// Two panels share an axis only where both are in one unit.
fn has_other_unit(picture: &Picture, number: usize) -> bool {
    picture.panels.get(number + 1).is_some_and(|next| next.unit != picture.panels[number].unit)
}

fn scale(picture: &Picture, options: &Options, length: f64) -> Scale {
    let ranks = picture.panels.iter().map(|panel| panel.rows.len()).max().unwrap_or(1);
    let left = MARGIN + text_width(&format!("rank {}", ranks.saturating_sub(1)), FONT) + 6.0;
    let width = (options.width - left - MARGIN).max(1.0);
    let factor = if length > 0.0 { width / length } else { 0.0 };
    Scale {
        left,
        width,
        factor: if factor.is_finite() { factor } else { 0.0 },
    }
}

/// Draws a panel from `y` on; gives where it ends.
fn panel(
    scene: &mut Scene,
    (number, panel): (usize, &Panel),
    options: &Options,
    scale: &Scale,
    most: f64,
    y: f64,
) -> f64 {
    let title = Shape::text((MARGIN, y + TITLE - 9.0), &panel.title, FONT + 2.0, Anchor::Start, Ink::Text);
    scene.draw(title);
    let mut y = y + TITLE;
    let height = row_height(panel.rows.len());
    for rank in 0..panel.rows.len() {
        let area = Area { x: scale.left, y, width: scale.width, height };
        label(scene, rank, area);
        rows::draw(scene, (number, panel), rank, options, scale, area);
        y += height;
    }
    if options.memory && most > 0.0 {
        let area = Area { x: scale.left, y: y + 6.0, width: scale.width, height: CURVE };
        curve::draw(scene, panel, most, scale, area);
        y += CURVE + 6.0;
    }
    notes(scene, panel, y)
}

pub fn row_height(ranks: usize) -> f64 {
    (ROWS / ranks.max(1) as f64).floor().clamp(LOWEST_ROW, HIGHEST_ROW)
}

/// The rank's name, where there is room below that of the one before.
fn label(scene: &mut Scene, rank: usize, area: Area) {
    let every = (12.0 / area.height).ceil().max(1.0) as usize;
    if rank.is_multiple_of(every) {
        let at = (area.x - 6.0, area.y + area.height.min(HIGHEST_ROW) / 2.0 + 0.35 * FONT);
        scene.draw(Shape::text(at, format!("rank {rank}"), FONT, Anchor::End, Ink::Text));
    }
}

/// What is wrong and has no place in a row, a line each.
fn notes(scene: &mut Scene, panel: &Panel, mut y: f64) -> f64 {
    let marks = panel.marks.iter().map(|mark| mark.message.clone());
    let lines: Vec<String> = marks.chain(panel.notes.iter().cloned()).collect();
    for line in lines.iter().take(NOTES) {
        y += LINE;
        scene.draw(Shape::text((MARGIN, y), line, FONT, Anchor::Start, Ink::Wrong));
    }
    if lines.len() > NOTES {
        y += LINE;
        let more = format!("and {} more", lines.len() - NOTES);
        scene.draw(Shape::text((MARGIN, y), more, FONT, Anchor::Start, Ink::Wrong));
    }
    if panel.length <= 0.0 {
        y += LINE;
        let words = "no slot takes any time";
        scene.draw(Shape::text((MARGIN, y), words, FONT, Anchor::Start, Ink::Faint));
    }
    if lines.is_empty() { y } else { y + 4.0 }
}

fn axis(scene: &mut Scene, unit: Unit, scale: &Scale, length: f64, y: f64) {
    let points = vec![(scale.left, y + 3.0), (scale.left + scale.width, y + 3.0)];
    scene.draw(Shape::Line { points, ink: Ink::Faint, width: 1.0 });
    let (factor, name) = if unit == Unit::Seconds { si(length) } else { (1.0, "") };
    for tick in ticks(length, scale.width / 90.0) {
        let x = scale.x(tick);
        let points = vec![(x, y + 3.0), (x, y + 7.0)];
        scene.draw(Shape::Line { points, ink: Ink::Faint, width: 1.0 });
        let text = format!("{} {name}", short(tick * factor));
        let anchor = if x + text_width(&text, FONT) / 2.0 > scale.left + scale.width + MARGIN {
            Anchor::End
        } else {
            Anchor::Middle
        };
        scene.draw(Shape::text((x, y + 18.0), text.trim_end(), FONT - 1.0, anchor, Ink::Faint));
    }
}

/// Round times from 0 to `length`, about `wanted` of them.
fn ticks(length: f64, wanted: f64) -> Vec<f64> {
    if !(length > 0.0 && length.is_finite()) {
        return vec![0.0];
    }
    let rough = length / wanted.max(2.0);
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|&step| step >= rough);
    let step = step.unwrap_or(rough);
    // A length of the smallest floats has no steps that can be told apart.
    let count = if step > 0.0 { (length / step * (1.0 + 1e-9)).floor() as usize } else { 0 };
    (0..=count.min(1000)).map(|number| number as f64 * step).collect()
}
