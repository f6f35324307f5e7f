//! What the ranks hold over time: the fullest in front, the others behind it.

use super::Ink;
use super::layout::{FONT, Scale};
use super::panel::{Level, Panel, short};
use super::scene::{Anchor, Area, Scene, Shape};

/// Of more ranks than this only the fullest is drawn.
const MOST: usize = 16;

/// `most` is what the full height stands for.
pub fn draw(scene: &mut Scene, panel: &Panel, most: f64, scale: &Scale, area: Area) {
    let base = area.y + area.height - 2.0;
    let points = vec![(area.x, base), (area.x + area.width, base)];
    scene.draw(Shape::Line { points, ink: Ink::Rule, width: 1.0 });
    let levels = &panel.held.levels;
    let peak = |levels: &[Level]| levels.iter().map(|level| level.held).fold(0.0, f64::max);
    let fullest = (0..levels.len()).rev().max_by(|&a, &b| peak(&levels[a]).total_cmp(&peak(&levels[b])));
    let curve = |rank: usize| {
        let height = area.height - 16.0;
        steps(&levels[rank], panel.length, |time| scale.x(time), |held| base - held / most * height)
    };
    if levels.len() <= MOST {
        for rank in (0..levels.len()).filter(|&rank| Some(rank) != fullest) {
            scene.draw(Shape::Line { points: curve(rank), ink: Ink::Rule, width: 1.0 });
        }
    }
    let Some(fullest) = fullest else { return };
    scene.draw(Shape::Line { points: curve(fullest), ink: Ink::Held, width: 1.5 });
    let words = format!("rank {fullest} holds at most {}", amount(peak(&levels[fullest]), panel.held.bytes));
    let at = (area.x + area.width, area.y + 9.0);
    scene.draw(Shape::text(at, words, FONT - 1.0, Anchor::End, Ink::Held));
}

/// An amount of what a rank holds, in words.
pub fn amount(held: f64, bytes: bool) -> String {
    if !bytes {
        return format!("{} activations", short(held));
    }
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|&(size, _)| held >= size) {
        Some((size, unit)) => format!("{} {unit}", short(held / size)),
        None => format!("{} bytes", short(held)),
    }
}

/// A curve of steps; of steps within one pixel, the lowest and the highest.
fn steps(levels: &[Level], end: f64, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = vec![(x(0.0), y(0.0))];
    let mut rest = levels;
    let mut before = 0.0;
    while let Some(first) = rest.first() {
        let column = x(first.time).floor();
        let here = rest.iter().take_while(|level| x(level.time).floor() == column).count();
        let (inside, after) = rest.split_at(here);
        let lowest = inside.iter().map(|level| level.held).fold(before, f64::min);
        let highest = inside.iter().map(|level| level.held).fold(before, f64::max);
        let at = x(first.time);
        points.push((at, y(before)));
        if here > 1 {
            points.extend([(at, y(highest)), (at, y(lowest))]);
        }
        before = inside[here - 1].held;
        points.push((at, y(before)));
        rest = after;
    }
    points.push((x(end), y(before)));
    points
}
