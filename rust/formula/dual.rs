//! Two directions over the same ranks: DualPipe, its half DualPipeV, and Chimera.

use super::Formula;
use super::case::{Case, at_most, same};
use super::law::Quantity::{Idle, Makespan, PeakActivations};
use super::law::{Condition, Law};

const TWO_RANKS: Condition = Condition { text: "p = 2", holds: |case| case.p == 2.0 };
const ONE_RANK: Condition = Condition { text: "p = 1", holds: |case| case.p == 1.0 };

/// DeepSeek-AI, 2024, table 2. Theirs is the bubble where I = F, B = I + W, FB ≤ F + B and c = 0.
pub const DUALPIPE: Formula = Formula {
    family: "dualpipe",
    source: "DeepSeek-V3 Technical Report, arXiv 2412.19437, for I = F and c = 0; the rest is this project's",
    laws: &[
        Law::new(
            Idle,
            "the makespan less the least busy rank's time; DeepSeek's (p/2 − 1)(FB + B − 3W) where I = F, \
             B = I + W, FB ≤ F + B and c = 0",
            |case| Half::of_dualpipe(case).bubble(),
        )
        .within(REGION)
        .or_where(TWO_RANKS),
        Law::new(
            Makespan,
            "n(FB + I − 2W) + m(F + I + W) − (m − p − 1)(F + I + W − FB) + 2(B − I − W) \
             + c(m + 2p − 4 − ⌈(m − 2)/p⌉) − min(n(I − F + c), F, B − W), n = p/2 − 1",
            |case| Half::of_dualpipe(case).makespan(),
        )
        .within(REGION)
        .or_where(TWO_RANKS),
        Law::new(PeakActivations, "p + 1", |case| case.p + 1.0),
    ],
};

/// DualPipe cut in half; the same with p − 1 for p/2 − 1.
pub const DUALPIPEV: Formula = Formula {
    family: "dualpipev",
    source: "github.com/deepseek-ai/DualPipe, for I = F and c = 0; the rest is this project's",
    laws: &[
        Law::new(
            Idle,
            "the makespan less the least busy rank's time; DeepSeek's (p − 1)(FB + B − 3W) where I = F, \
             B = I + W, FB ≤ F + B and c = 0",
            |case| Half::of_dualpipev(case).bubble(),
        )
        .within(REGION)
        .or_where(ONE_RANK),
        Law::new(
            Makespan,
            "n(FB + I − 2W) + 2m(F + I + W) − (2m − 2p − 1)(F + I + W − FB) + 2(B − I − W) \
             + 2c(m + 2p − 3 − ⌈(m − 1)/p⌉) − min(n(I − F + 2c), F, B − W), n = p − 1",
            |case| Half::of_dualpipev(case).makespan(),
        )
        .within(REGION)
        .or_where(ONE_RANK),
        Law::new(PeakActivations, "2p + 1", |case| 2.0 * case.p + 1.0),
    ],
};

const REGION: &[Condition] = &[
    Condition { text: "W ≤ I", holds: |case| at_most(case.w, case.i) },
    Condition { text: "W ≤ B", holds: |case| at_most(case.w, case.b) },
    Condition {
        text: "max(F, B, I + W) ≤ FB",
        holds: |case| at_most(case.f.max(case.b).max(case.i + case.w), case.fb),
    },
    Condition {
        text: "c = 0, or F ≤ I and I + W ≤ B",
        holds: |case| case.c == 0.0 || (at_most(case.f, case.i) && at_most(case.i + case.w, case.b)),
    },
];

/// The ranks from one end to the middle, and the microbatches of one direction.
struct Half<'a> {
    case: &'a Case,
    ranks: f64,
    microbatches: f64,
    /// The hops of the longest way through a step; and by how many of them a rank's I's come later than its
    /// neighbour's.
    hops: f64,
    lead: f64,
}

impl Half<'_> {
    fn of_dualpipe(case: &Case) -> Half<'_> {
        let &Case { p, m, .. } = case;
        let hops = m + 2.0 * p - 4.0 - ((m - 2.0) / p).ceil();
        Half { case, ranks: p / 2.0, microbatches: m / 2.0, hops, lead: 1.0 }
    }

    fn of_dualpipev(case: &Case) -> Half<'_> {
        let &Case { p, m, .. } = case;
        let hops = 2.0 * (m + 2.0 * p - 3.0 - ((m - 1.0) / p).ceil());
        Half { case, ranks: p, microbatches: m, hops, lead: 2.0 }
    }

    fn makespan(&self) -> f64 {
        let &Case { f, i, w, fb, .. } = self.case;
        let (p, m) = (self.ranks, self.microbatches);
        let middle = 2.0 * m * (f + i + w) - (2.0 * m - 2.0 * p - 1.0) * (f + i + w - fb);
        middle + self.beyond_middle()
    }

    /// The makespan less the time of a middle rank whose unfused backwards all cost I + W.
    fn beyond_middle(&self) -> f64 {
        let &Case { f, i, w, b, fb, c, .. } = self.case;
        let turns = self.ranks - 1.0;
        // The later gradients come, the more of a rank's own work goes before them, up to one action.
        let hidden = (turns * (i - f + self.lead * c)).min(f).min((b - w).max(0.0));
        turns * (fb + i - 2.0 * w) + 2.0 * (b - i - w) + self.hops * c - hidden
    }

    /// By how much the rank `h` away from the end computes more than that. Of the eight steps of
    /// `rust/generate/dualpipe.rs` it has p − 2 − h pairs fewer, and p whole backwards outside of pairs; the middle
    /// one has as many pairs as its neighbour, and one such backward more.
    fn busier(&self, h: f64) -> f64 {
        let &Case { f, i, w, b, fb, .. } = self.case;
        let unfused = if h == self.ranks - 1.0 { 1.0 } else { 0.0 };
        let pairs_fewer = self.ranks - 2.0 - h + unfused;
        (self.ranks + unfused) * (b - i - w) + pairs_fewer * (f + i + w - fb)
    }

    fn bubble(&self) -> f64 {
        let ranks = (0..self.ranks as u32).map(f64::from);
        self.beyond_middle() - ranks.map(|h| self.busier(h)).fold(f64::INFINITY, f64::min)
    }
}

/// Li and Hoefler, 2021. At B ≥ F and m = p theirs, pF + (2p − 2)B.
pub const CHIMERA: Formula = Formula {
    family: "chimera",
    source: "Chimera, arXiv 2107.06925, for m = p and c = 0; the rest is this project's",
    laws: &[
        Law::new(Idle, "(p − 2)(min(F, B) + |B − F|m/p) + c(2(p − 1)m/p + max(0, p − 3))", chimera_bubble)
            .within(CHIMERA_REGION)
            .or_where(TWO_RANKS),
        Law::new(
            Makespan,
            "m(F + B) + (p − 2)(min(F, B) + |B − F|m/p) + c(2(p − 1)m/p + max(0, p − 3))",
            |case| case.whole() + chimera_bubble(case),
        )
        .within(CHIMERA_REGION)
        .or_where(TWO_RANKS),
        Law::new(PeakActivations, "p", |case| case.p),
    ],
};

const CHIMERA_REGION: &[Condition] = &[Condition {
    text: "c = 0 or m = p or F = B",
    holds: |case| case.c == 0.0 || case.m == case.p || same(case.f, case.b),
}];

fn chimera_bubble(case: &Case) -> f64 {
    let &Case { p, m, f, b, c, .. } = case;
    let units = m / p;
    (p - 2.0) * (f.min(b) + units * (b - f).abs()) + c * (2.0 * (p - 1.0) * units + (p - 3.0).max(0.0))
}
