//! Several stages a rank, dealt out round by round: interleaved 1F1B and looped BFS.

use super::Formula;
use super::case::{Case, at_most};
use super::law::Quantity::{Idle, Makespan, PeakActivations};
use super::law::{Condition, Law};

/// Narayanan et al., 2021, section 2.2. In the paper's own letters, F and B of a whole rank, the bubble is
/// (p − 1)(F + B)/v.
pub const INTERLEAVED: Formula = Formula {
    family: "interleaved",
    source: "Megatron-LM, arXiv 2104.04473, for multiples of p and c = 0; the rest is this project's",
    laws: &[
        Law::new(Idle, "(p − 1 + (v − 1) max(0, p − m))(F + B) + 2(pv − 1)c", interleaved_bubble)
            .within(HOPS_HIDDEN),
        Law::new(Makespan, "(mv + p − 1 + (v − 1) max(0, p − m))(F + B) + 2(pv − 1)c", |case| {
            case.whole() + interleaved_bubble(case)
        })
        .within(HOPS_HIDDEN),
        Law::new(
            PeakActivations,
            "min(2(p − 1) + (v − 1)n + 1, mv), n microbatches a round: p where p | m",
            |case| (2.0 * (case.p - 1.0) + (case.v - 1.0) * round(case) + 1.0).min(case.m * case.v),
        ),
    ],
};

/// A hop is paid on the way through all stages and back; in between there is other work to hide it.
const HOPS_HIDDEN: &[Condition] = &[Condition {
    text: "c = 0, or p | m and c ≤ min(F, B), or 2c ≤ F + B and (m ≤ p, or v = 1 and p | m)",
    holds: hops_hidden,
}];

fn hops_hidden(case: &Case) -> bool {
    let &Case { p, m, v, f, b, c, .. } = case;
    let whole_rounds = m % p == 0.0;
    c == 0.0
        || (whole_rounds && at_most(c, f.min(b)))
        || (at_most(2.0 * c, f + b) && (m <= p || (v == 1.0 && whole_rounds)))
}

fn interleaved_bubble(case: &Case) -> f64 {
    let &Case { p, m, v, c, .. } = case;
    let hops = if p > 1.0 { 2.0 * (p * v - 1.0) * c } else { 0.0 };
    (p - 1.0 + (v - 1.0) * (p - m).max(0.0)) * case.fb_apart() + hops
}

/// Microbatches a round: max(1, m div p) rounds of equal length.
fn round(case: &Case) -> f64 {
    case.m / (case.m / case.p).floor().max(1.0)
}

/// Its times depend on more than a short form can hold.
pub const INTERLEAVED_ZB: Formula = Formula {
    family: "interleaved-zb",
    source: "the order of torch.distributed.pipelining's ScheduleInterleavedZeroBubble, after arXiv 2401.10241; \
             the form is this project's",
    laws: &[Law::new(
        PeakActivations,
        "min(p + (v − 1)n, mv), n microbatches a round: p where p | m",
        |case| (case.p + (case.v - 1.0) * round(case)).min(case.m * case.v),
    )],
};

/// Lamy-Poirier, 2022: GPipe once for each of a rank's stages. Where m < p, or a hop is long, a stage waits for the
/// first microbatch to come round.
pub const LOOPED_BFS: Formula = Formula {
    family: "looped-bfs",
    source: "Breadth-First Pipeline Parallelism, arXiv 2211.05953, for m ≥ p and c = 0; the rest is this project's",
    laws: &[
        Law::new(
            Idle,
            "(p − 1)(F + B + 2c) + (v − 1)(max(0, p(F + c) − mF) + max(0, p(B + c) − mB))",
            looped_bubble,
        ),
        Law::new(
            Makespan,
            "(m + p − 1)(F + B) + 2(p − 1)c + (v − 1)(max(mF, p(F + c)) + max(mB, p(B + c)))",
            |case| case.whole() + looped_bubble(case),
        ),
        Law::new(PeakActivations, "mv", |case| case.m * case.v),
    ],
};

fn looped_bubble(case: &Case) -> f64 {
    let &Case { p, m, v, f, b, c, .. } = case;
    let wait = |cost: f64| (p * (cost + c) - m * cost).max(0.0);
    (p - 1.0) * (f + b + 2.0 * c) + (v - 1.0) * (wait(f) + wait(b))
}
