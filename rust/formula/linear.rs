//! One stage a rank: GPipe, 1F1B and the handcrafted zero-bubble schedules.

use super::Formula;
use super::case::{Case, at_most};
use super::law::Quantity::{Idle, IdleWithin, Makespan, PeakActivations, Span};
use super::law::{Condition, Law};

/// Huang et al., 2019: forwards cross the ranks once, and so do backwards.
pub const GPIPE: Formula = Formula {
    family: "gpipe",
    source: "GPipe, arXiv 1811.06965; the hops are this project's",
    laws: &[
        Law::new(Idle, "(p − 1)(F + B + 2c)", gpipe_bubble),
        Law::new(Makespan, "(m + p − 1)(F + B) + 2(p − 1)c", |case| case.whole() + gpipe_bubble(case)),
        Law::new(PeakActivations, "m", |case| case.m),
    ],
};

fn gpipe_bubble(case: &Case) -> f64 {
    (case.p - 1.0) * (case.fb_apart() + 2.0 * case.c)
}

/// Narayanan et al., 2019. Two neighbours wait for each other in every microbatch but one of p, so that a hop
/// costs something each time.
pub const ONE_F_ONE_B: Formula = Formula {
    family: "1f1b",
    source: "PipeDream, arXiv 1806.03377, and Megatron-LM, arXiv 2104.04473; the hops are this project's",
    laws: &[
        Law::new(Idle, "(p − 1)(F + B) + 2c(m + p − 2 − ⌈(m − 1)/p⌉)", one_f_one_b_bubble),
        Law::new(Makespan, "(m + p − 1)(F + B) + 2c(m + p − 2 − ⌈(m − 1)/p⌉)", |case| {
            case.whole() + one_f_one_b_bubble(case)
        }),
        Law::new(PeakActivations, "min(p, m)", |case| case.p.min(case.m)),
    ],
};

fn one_f_one_b_bubble(case: &Case) -> f64 {
    let &Case { p, m, c, .. } = case;
    (p - 1.0) * case.fb_apart() + 2.0 * c * (m + p - 2.0 - ((m - 1.0) / p).ceil())
}

const ONE_RANK: Condition = Condition { text: "p = 1", holds: |case| case.p == 1.0 };

/// Qi et al., 2023, section 2.3.
pub const ZB_H1: Formula = Formula {
    family: "zb-h1",
    source: "Zero Bubble Pipeline Parallelism, arXiv 2401.10241, which has W ≤ min(F, I) and c = 0; \
             the rest is this project's",
    laws: &[
        Law::new(Idle, "(p − 1)(F + I − min(W, F + 2c, I + c) + 4c)", zb_h1_bubble)
            .within(ZB_H1_REGION)
            .or_where(ONE_RANK),
        Law::new(Makespan, "m(F + I + W) + (p − 1)(F + I − min(W, F + 2c, I + c) + 4c)", |case| {
            case.split() + zb_h1_bubble(case)
        })
        .within(ZB_H1_REGION)
        .or_where(ONE_RANK),
        Law::new(PeakActivations, "min(p, m)", |case| case.p.min(case.m)),
    ],
};

const ZB_H1_REGION: &[Condition] = &[
    Condition {
        text: "m > p, or m = p and c = 0",
        holds: |case| case.m > case.p || (case.m == case.p && case.c == 0.0),
    },
    Condition {
        text: "2c ≤ W", holds: |case| at_most(2.0 * case.c, case.w)
    },
];

fn zb_h1_bubble(case: &Case) -> f64 {
    let &Case { p, f, i, w, c, .. } = case;
    (p - 1.0) * (f + i - w.min(f + 2.0 * c).min(i + c) + 4.0 * c)
}

/// The same paper: more forwards in the warm-up, and the optimizer's step no longer in common.
pub const ZB_H2: Formula = Formula {
    family: "zb-h2",
    source: "Zero Bubble Pipeline Parallelism, arXiv 2401.10241; the hops and the makespan are this project's",
    laws: &[
        Law::new(IdleWithin, "(p − 1)(F + I − 2W + 2c)", zb_h2_bubble)
            .within(ZB_H2_SPAN_REGION)
            .or_where(ONE_RANK),
        Law::new(Makespan, "m(F + I + W) + (p − 1) max(F + c, F + I − 2W + 2c)", |case| {
            case.split() + zb_h2_bubble(case).max((case.p - 1.0) * (case.f + case.c))
        })
        .within(&[
            Condition {
                text: "W ≤ F or I + c ≤ 2F",
                holds: |case| at_most(case.w, case.f) || at_most(case.i + case.c, 2.0 * case.f),
            },
            ZB_H2_HOP,
        ])
        .or_where(ONE_RANK),
        Law::new(Span, "m(F + I + W) + (p − 1)(F + I − 2W + 2c)", |case| {
            case.split() + zb_h2_bubble(case)
        })
        .within(ZB_H2_SPAN_REGION)
        .or_where(ONE_RANK),
        Law::new(PeakActivations, "2p − 1", |case| 2.0 * case.p - 1.0),
    ],
};

const ZB_H2_HOP: Condition = Condition {
    text: "2c ≤ F + I",
    holds: |case| at_most(2.0 * case.c, case.f + case.i),
};
const ZB_H2_SPAN_REGION: &[Condition] = &[
    Condition { text: "W ≤ F", holds: |case| at_most(case.w, case.f) },
    ZB_H2_HOP,
    Condition {
        text: "2W ≤ F + I + 2c",
        holds: |case| at_most(2.0 * case.w, case.f + case.i + 2.0 * case.c),
    },
];

fn zb_h2_bubble(case: &Case) -> f64 {
    let &Case { p, f, i, w, c, .. } = case;
    (p - 1.0) * (f + i - 2.0 * w + 2.0 * c)
}
