//! A scene as SVG: colours are classes of one style sheet inside, so that a page's or system's dark theme can turn
//! them, and nothing outside the file is ever asked for.
//!
//! Each cell is a group with what it is in `data-` attributes, and its words as a tooltip: the picture can be read
//! back.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::palette::{Ink, Theme, hex};
use super::scene::{Anchor, Cell, Item, Scene, Shape};

/// `None` follows the reader's own theme.
pub fn svg(scene: &Scene, theme: Option<Theme>) -> String {
    let mut body = String::new();
    for item in &scene.items {
        match item {
            Item::Shape(shape) => write_shape(&mut body, shape),
            Item::Cell(cell) => write_cell(&mut body, cell),
        }
    }
    let (width, height) = (number(scene.width), number(scene.height));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" style=\"max-width:100%;height:auto\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" role=\"img\">\n\
         <style>{}</style>\n{body}</svg>\n",
        style(scene, theme)
    )
}

fn style(scene: &Scene, theme: Option<Theme>) -> String {
    let mut inks: BTreeMap<String, Ink> = BTreeMap::new();
    for shape in scene.shapes() {
        for ink in shape.inks() {
            inks.insert(ink.name(), ink);
        }
    }
    let rules = |theme: Theme, only_themed: bool| {
        let inks = inks.iter().filter(|(_, ink)| !only_themed || ink.has_themes());
        let rules = inks.map(|(name, ink)| {
            let colour = hex(ink.colour(theme));
            format!(".{name}{{fill:#{colour}}}.l-{name}{{stroke:#{colour};fill:none}}")
        });
        rules.collect::<String>()
    };
    let base = rules(theme.unwrap_or(Theme::Light), false);
    let dark = match theme {
        None => format!("@media (prefers-color-scheme:dark){{{}}}", rules(Theme::Dark, true)),
        Some(_) => String::new(),
    };
    format!("text{{pointer-events:none}}{base}{dark}")
}

impl Shape {
    pub fn inks(&self) -> impl Iterator<Item = Ink> {
        let (first, second) = match *self {
            Shape::Rect { fill, stroke, .. } => (fill, stroke.map(|(ink, _)| ink)),
            Shape::Line { ink, .. } | Shape::Text { ink, .. } => (Some(ink), None),
        };
        first.into_iter().chain(second)
    }
}

fn write_cell(out: &mut String, cell: &Cell) {
    let part = |values: Vec<String>| values.join(" ");
    let of = |value: fn(&crate::schedule::Action) -> String| {
        part(cell.slot.actions().map(|a| value(&a)).collect())
    };
    let _ = write!(
        out,
        "<g data-panel=\"{}\" data-rank=\"{}\" data-slot=\"{}\" data-kind=\"{}\" data-stage=\"{}\" \
         data-microbatch=\"{}\" data-start=\"{}\" data-end=\"{}\"><title>{}</title>",
        cell.panel,
        cell.rank,
        cell.index,
        of(|action| action.kind.letter().to_string()),
        of(|action| action.stage.to_string()),
        of(|action| action.microbatch.to_string()),
        cell.time.start,
        cell.time.end,
        escaped(&cell.words),
    );
    cell.shapes.iter().for_each(|shape| write_shape(out, shape));
    out.push_str("</g>\n");
}

// Writing to a String cannot fail.
fn write_shape(out: &mut String, shape: &Shape) {
    match shape {
        Shape::Rect { area, fill, stroke, opacity } => {
            let [x, y, width, height] = [area.x, area.y, area.width, area.height].map(number);
            let class = match (fill, stroke) {
                (Some(ink), _) => ink.name(),
                (None, Some((ink, _))) => format!("l-{}", ink.name()),
                (None, None) => return,
            };
            let _ = write!(
                out,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\""
            );
            if let (None, Some((_, width))) = (fill, stroke) {
                let _ = write!(out, " stroke-width=\"{}\"", number(*width));
            }
            if *opacity < 1.0 {
                let _ = write!(out, " opacity=\"{}\"", number(*opacity));
            }
            out.push_str("/>\n");
        }
        Shape::Line { points, ink, width } => {
            let points: Vec<String> =
                points.iter().map(|&(x, y)| format!("{},{}", number(x), number(y))).collect();
            let (name, width, points) = (ink.name(), number(*width), points.join(" "));
            let _ =
                writeln!(out, "<polyline class=\"l-{name}\" stroke-width=\"{width}\" points=\"{points}\"/>");
        }
        Shape::Text { at, text, size, anchor, ink } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            let (name, x, y, size) = (ink.name(), number(at.0), number(at.1), number(*size));
            let _ = writeln!(
                out,
                "<text class=\"{name}\" x=\"{x}\" y=\"{y}\" font-size=\"{size}\" text-anchor=\"{anchor}\">{}</text>",
                escaped(text)
            );
        }
    }
}

/// Two digits after the point, no more than it takes.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_string() } else { text.to_string() }
}

/// A name may hold anything, also what no XML may.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(letter),
            control if control.is_control() || matches!(control, '\u{fffe}' | '\u{ffff}') => {
                out.push('\u{fffd}')
            }
            other => out.push(other),
        }
    }
    out
}
