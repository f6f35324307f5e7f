//! Stages placed down and up again: ZB-V, V-Half, V-Min, and Hanayo's waves.

use super::Formula;
use super::case::{Case, at_most, same};
use super::law::Quantity::{Idle, IdleWithin, Makespan, PeakActivations, Span};
use super::law::{Condition, Law};

const ONE_RANK: Condition = Condition { text: "p = 1", holds: |case| case.p == 1.0 };
const NO_HOPS: Condition = Condition { text: "c = 0", holds: |case| case.c == 0.0 };

/// Qi et al., 2023, section 6. Zero where F = I = W and c = 0.
pub const ZB_V: Formula = Formula {
    family: "zb-v",
    source: "Zero Bubble Pipeline Parallelism, arXiv 2401.10241, for F = I = W and c = 0; the rest is this project's",
    laws: &[
        Law::new(IdleWithin, "2(p − 1)(I − W) + (6p − 8)c", zb_v_bubble)
            .within(ZB_V_SPAN_REGION)
            .or_where(ONE_RANK),
        Law::new(
            Makespan,
            "2m(F + I + W) + max((p − 1)I + (5p − 7)c, 2(p − 1)(I − W) + (6p − 8)c)",
            |case| case.split() + zb_v_ends(case).max(zb_v_bubble(case)),
        )
        .within(&[ZB_V_FILLED, ZB_V_INPUT, ZB_V_WEIGHT, ZB_V_HOP])
        .or_where(ONE_RANK),
        Law::new(Span, "2m(F + I + W) + 2(p − 1)(I − W) + (6p − 8)c", |case| {
            case.split() + zb_v_bubble(case)
        })
        .within(ZB_V_SPAN_REGION)
        .or_where(ONE_RANK),
        Law::new(PeakActivations, "2 min(p, m)", |case| 2.0 * case.p.min(case.m)),
    ],
};

const ZB_V_FILLED: Condition = Condition {
    text: "m ≥ 2p − 1",
    holds: |case| case.m >= 2.0 * case.p - 1.0,
};
const ZB_V_INPUT: Condition = Condition { text: "F ≤ I", holds: |case| at_most(case.f, case.i) };
const ZB_V_WEIGHT: Condition = Condition { text: "W ≤ I", holds: |case| at_most(case.w, case.i) };
const ZB_V_HOP: Condition = Condition {
    text: "2c ≤ W", holds: |case| at_most(2.0 * case.c, case.w)
};
const ZB_V_SPAN_REGION: &[Condition] = &[
    ZB_V_FILLED,
    ZB_V_INPUT,
    ZB_V_WEIGHT,
    Condition {
        text: "2W ≤ F + I + 2c",
        holds: |case| at_most(2.0 * case.w, case.f + case.i + 2.0 * case.c),
    },
    ZB_V_HOP,
];

fn zb_v_bubble(case: &Case) -> f64 {
    let &Case { p, i, w, c, .. } = case;
    2.0 * (p - 1.0) * (i - w) + (6.0 * p - 8.0) * c
}

/// What the last rank waits at both ends of a step.
fn zb_v_ends(case: &Case) -> f64 {
    let &Case { p, i, c, .. } = case;
    (p - 1.0) * i + (5.0 * p - 7.0) * c
}

/// Qi et al., 2024. Their times depend on moves that the paper leaves open.
pub const V_HALF: Formula = Formula {
    family: "v-half",
    source: "Pipeline Parallelism with Controllable Memory, arXiv 2405.15362",
    laws: &[Law::new(PeakActivations, "min(p + 2 for even p, p + 1 for odd p, 2m)", |case| {
        (case.p + 2.0 - case.p % 2.0).min(2.0 * case.m)
    })],
};

/// The same.
pub const V_MIN: Formula = Formula {
    family: "v-min",
    source: "Pipeline Parallelism with Controllable Memory, arXiv 2405.15362",
    laws: &[Law::new(PeakActivations, "min(2⌊(p + 4)/3⌋, 2m)", |case| {
        (2.0 * ((case.p + 4.0) / 3.0).floor()).min(2.0 * case.m)
    })],
};

/// Liu et al., 2023. In the paper, m = p, B = 2F and a bubble of 2(p − 1)/W of a whole rank's F, W the waves.
pub const HANAYO: Formula = Formula {
    family: "hanayo",
    source: "Hanayo, arXiv 2308.15762, for m = p and B = 2F; the rest is this project's",
    laws: &[
        Law::new(Idle, "2(p − 1)M + n(v(F + B) − 2M), M = max(F, B), n = p⌈m/p⌉ − m", hanayo_bubble)
            .within(HANAYO_REGION)
            .or_where(ONE_RANK),
        Law::new(
            Makespan,
            "mv(F + B) + 2(p − 1)M + n(v(F + B) − 2M), M = max(F, B), n = p⌈m/p⌉ − m",
            |case| case.whole() + hanayo_bubble(case),
        )
        .within(HANAYO_REGION)
        .or_where(ONE_RANK),
        Law::new(PeakActivations, "v min(p, m)", |case| case.v * case.p.min(case.m)),
    ],
};

const HANAYO_REGION: &[Condition] = &[
    Condition {
        text: "m ≤ p or F = B",
        holds: |case| case.m <= case.p || same(case.f, case.b),
    },
    NO_HOPS,
];

fn hanayo_bubble(case: &Case) -> f64 {
    let &Case { p, m, v, f, b, .. } = case;
    let longer = f.max(b);
    let missing = p * (m / p).ceil() - m;
    2.0 * (p - 1.0) * longer + missing * (v * (f + b) - 2.0 * longer)
}
