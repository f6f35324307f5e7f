//! The words below a picture: which colour is what.

use super::layout::{FONT, Options};
use super::rows::kinds;
use super::scene::{Anchor, Area, Scene, Shape, text_width};
use super::{Ink, Picture};
use crate::schedule::{Kind, Slot};
use crate::timeline::CAUSES;

const BOX: f64 = 12.0;
const LINE: f64 = 18.0;
const LEFT: f64 = 12.0;

/// Draws the legend from `y` on, in as many lines as it takes; gives where it ends.
pub fn draw(scene: &mut Scene, picture: &Picture, options: &Options, y: f64) -> f64 {
    let mut at = (LEFT, y);
    for (boxes, words) in entries(picture, options) {
        let width = boxes.len() as f64 * BOX + 5.0 + text_width(&words, FONT) + 14.0;
        if at.0 + width > scene.width && at.0 > LEFT {
            at = (LEFT, at.1 + LINE);
        }
        for (number, shape) in boxes.iter().enumerate() {
            let area = Area {
                x: at.0 + number as f64 * BOX,
                y: at.1,
                width: BOX,
                height: BOX,
            };
            scene.draw(swatch(*shape, area));
        }
        let x = at.0 + boxes.len() as f64 * BOX + 5.0;
        scene.draw(Shape::text((x, at.1 + BOX - 2.0), words, FONT, Anchor::Start, Ink::Text));
        at.0 += width;
    }
    at.1 + LINE
}

#[derive(Clone, Copy)]
enum Swatch {
    Filled(Ink),
    Line(Ink),
    Framed(Ink),
}

fn swatch(swatch: Swatch, area: Area) -> Shape {
    match swatch {
        Swatch::Filled(ink) => Shape::filled(area, ink),
        Swatch::Line(ink) => Shape::filled(Area { y: area.y + area.height - 4.0, height: 3.0, ..area }, ink),
        Swatch::Framed(ink) => {
            let inside = Area {
                x: area.x + 1.0,
                y: area.y + 1.0,
                width: BOX - 2.0,
                height: BOX - 2.0,
            };
            Shape::outline(inside, ink, 1.5)
        }
    }
}

fn entries(picture: &Picture, options: &Options) -> Vec<(Vec<Swatch>, String)> {
    let panels = || picture.panels.iter();
    let chunks = panels().flat_map(|panel| &panel.rows).map(|row| row.stages.len()).max().unwrap_or(1);
    let has_kind = |kind: Kind| panels().any(|panel| kinds(panel).contains(&kind));
    let mut entries: Vec<(Vec<Swatch>, String)> = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|&kind| has_kind(kind)) {
        let tones = (0..chunks.min(4)).map(|chunk| {
            let chunk = if chunks > 4 { chunk * (chunks - 1) / 3 } else { chunk };
            Swatch::Filled(Ink::Action { kind, chunk, chunks })
        });
        entries.push((tones.collect(), kind.words().to_string()));
    }
    let rows = || panels().flat_map(|panel| &panel.rows);
    if rows().any(|row| row.slots.iter().any(|(slot, _)| matches!(slot, Slot::Pair(..)))) {
        entries.push((vec![Swatch::Framed(Ink::Border)], "fused pair".to_string()));
    }
    if rows().any(|row| row.closing.is_some()) {
        entries.push((vec![Swatch::Filled(Ink::Optimizer)], "optimizer".to_string()));
    }
    if options.causes {
        let has = |cause| rows().any(|row| row.waits.iter().any(|wait| wait.cause == cause));
        for cause in CAUSES.into_iter().filter(|&cause| has(cause)) {
            let words = format!("idle: {}", cause.words());
            entries.push((vec![Swatch::Filled(Ink::Cause(cause))], words));
        }
    }
    if options.critical_path {
        entries.push((vec![Swatch::Line(Ink::Critical)], "critical path".to_string()));
    }
    if chunks > 1 {
        entries.push((Vec::new(), "darker: the rank's further stages".to_string()));
    }
    entries
}
