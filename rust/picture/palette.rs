//! Every colour of every picture, in one place.
//!
//! The four kinds differ in hue for those who see it and in lightness for all others: weights lightest, then forward,
//! input, full backward. Every distance is kept under the three kinds of colour blindness, and in grey
//! (tests/test_picture_colours.py). A rank's further stages are darker tones of the same.

use crate::schedule::Kind;
use crate::timeline::Cause;

pub type Rgb = [u8; 3];

/// What a shape is drawn in; the theme says which colour that is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ink {
    Paper,
    Text,
    /// Secondary text, and curves that are not the one that matters.
    Faint,
    /// Axes and grid lines.
    Rule,
    /// A rank's row, where it is idle.
    Idle,
    /// Around a fused pair.
    Border,
    Critical,
    /// A broken rule.
    Wrong,
    Held,
    /// After the last slot: gradients are exchanged; the optimizer.
    Optimizer,
    Cause(Cause),
    Action {
        kind: Kind,
        chunk: usize,
        chunks: usize,
    },
    /// A text upon that.
    On {
        kind: Kind,
        chunk: usize,
        chunks: usize,
    },
    /// Of many slots too narrow to be told apart.
    Mixed(Rgb),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    Light,
    Dark,
}

impl Ink {
    pub fn colour(self, theme: Theme) -> Rgb {
        let either = |light, dark| if theme == Theme::Light { light } else { dark };
        match self {
            Ink::Paper => either([255, 255, 255], [23, 25, 30]),
            Ink::Text => either([28, 30, 34], [232, 234, 238]),
            Ink::Faint => either([110, 115, 124], [150, 156, 166]),
            Ink::Rule => either([222, 225, 230], [58, 62, 70]),
            Ink::Idle => either([244, 245, 247], [33, 36, 42]),
            Ink::Border => either([16, 16, 16], [255, 255, 255]),
            Ink::Critical => either([214, 0, 111], [255, 92, 173]),
            Ink::Wrong => either([200, 0, 0], [255, 84, 84]),
            Ink::Held => either([84, 60, 160], [178, 158, 255]),
            Ink::Optimizer => [140, 140, 148],
            Ink::Cause(cause) => cause_colour(cause, theme),
            Ink::Action { kind, chunk, chunks } => action_colour(kind, chunk, chunks),
            Ink::On { kind, chunk, chunks } => text_on(action_colour(kind, chunk, chunks)),
            Ink::Mixed(colour) => colour,
        }
    }

    /// Whether it is one colour in the light and another in the dark.
    pub fn has_themes(self) -> bool {
        self.colour(Theme::Light) != self.colour(Theme::Dark)
    }

    /// A short name, the same for what has the same colour.
    pub fn name(self) -> String {
        match self {
            Ink::Paper => "paper".into(),
            Ink::Text => "text".into(),
            Ink::Faint => "faint".into(),
            Ink::Rule => "rule".into(),
            Ink::Idle => "idle".into(),
            Ink::Border => "border".into(),
            Ink::Critical => "critical".into(),
            Ink::Wrong => "wrong".into(),
            Ink::Held => "held".into(),
            Ink::Optimizer => "optimizer".into(),
            Ink::Cause(cause) => format!("c-{}", cause.name()),
            Ink::Action { kind, chunk, .. } => format!("{}{chunk}", kind.letter()),
            Ink::On { kind, chunk, .. } => format!("on-{}{chunk}", kind.letter()),
            Ink::Mixed(colour) => format!("m-{}", hex(colour)),
        }
    }
}

/// `1f7a5c`.
pub fn hex([red, green, blue]: Rgb) -> String {
    format!("{red:02x}{green:02x}{blue:02x}")
}

/// The colour of an action in the `chunk`-th of a rank's `chunks` stages.
pub fn action_colour(kind: Kind, chunk: usize, chunks: usize) -> Rgb {
    let (first, last) = match kind {
        Kind::F => ([118, 206, 250], [72, 158, 224]),
        Kind::I => ([214, 124, 72], [166, 68, 22]),
        Kind::W => ([255, 248, 186], [252, 220, 84]),
        Kind::B => ([52, 110, 96], [8, 56, 62]),
    };
    let share = if chunks > 1 { chunk as f64 / (chunks - 1) as f64 } else { 0.0 };
    mix(first, last, share)
}

fn cause_colour(cause: Cause, theme: Theme) -> Rgb {
    let tint = match cause {
        Cause::WarmUp => [150, 160, 175],
        Cause::Dependency => [232, 120, 130],
        Cause::Hop => [160, 120, 224],
        Cause::Partner => [88, 176, 160],
        Cause::Overhead => [205, 160, 60],
        Cause::Exchange => [110, 140, 235],
        Cause::CoolDown => [185, 170, 160],
    };
    mix(Ink::Paper.colour(theme), tint, if theme == Theme::Light { 0.45 } else { 0.5 })
}

pub fn mix(from: Rgb, to: Rgb, share: f64) -> Rgb {
    std::array::from_fn(|i| (from[i] as f64 + (to[i] as f64 - from[i] as f64) * share).round() as u8)
}

/// Black or white, whichever can be read better upon a colour (the contrast of WCAG 2).
pub fn text_on(colour: Rgb) -> Rgb {
    let linear = |part: u8| {
        let part = part as f64 / 255.0;
        if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    };
    let [red, green, blue] = colour.map(linear);
    let luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    // Equal contrast with black and with white is at (L + 0.05)² = 1.05 × 0.05.
    if luminance > 0.179 { [20, 20, 20] } else { [255, 255, 255] }
}
