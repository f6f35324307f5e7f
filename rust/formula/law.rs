//! What a closed form is: a quantity, its value, and the conditions under which that is exact.

use super::case::Case;

/// What a formula gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// A bubble as most papers count it.
    Idle,
    /// A bubble as the papers of ZB-H2 and ZB-V count it: a rank is not charged for what comes before its first
    /// action and after its last.
    IdleWithin,
    Makespan,
    Span,
    PeakActivations,
}

impl Quantity {
    /// What users ask for it by.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::Idle | Quantity::IdleWithin => "bubble",
            Quantity::Makespan => "makespan",
            Quantity::Span => "span",
            Quantity::PeakActivations => "peak_activations",
        }
    }

    /// What it counts.
    pub fn words(self) -> &'static str {
        match self {
            Quantity::Idle => "bubble: the makespan less the busy time of the most idle rank",
            Quantity::IdleWithin => {
                "bubble by span: the most by which a rank's own last end minus first start exceeds its busy time"
            }
            Quantity::Makespan => "makespan: the last end minus the first start, over all ranks",
            Quantity::Span => "span: the longest single rank's own last end minus first start",
            Quantity::PeakActivations => {
                "peak activations: the most (stage, microbatch) that any rank holds at once"
            }
        }
    }
}

/// A condition in words and in code.
pub struct Condition {
    pub text: &'static str,
    pub holds: fn(&Case) -> bool,
}

/// Every form of time takes one cost for all stages.
const ALIKE: Condition = Condition {
    text: "stages cost the same, hops too, and nothing comes after the slots",
    holds: |case| case.alike,
};

/// One closed form. Letters in its texts: F, I, W, B what an action of one stage costs, FB a fused pair, c a hop, p
/// ranks, m microbatches, v stages a rank.
pub struct Law {
    pub quantity: Quantity,
    /// The form, written out.
    pub text: &'static str,
    value: fn(&Case) -> f64,
    region: &'static [Condition],
    /// Where this holds, those of `region` need not.
    instead: Option<Condition>,
}

impl Law {
    /// True of all sizes and costs, until [`Law::within`] says where.
    pub const fn new(quantity: Quantity, text: &'static str, value: fn(&Case) -> f64) -> Law {
        Law { quantity, text, value, region: &[], instead: None }
    }

    pub const fn within(self, region: &'static [Condition]) -> Law {
        Law { region, ..self }
    }

    pub const fn or_where(self, instead: Condition) -> Law {
        Law { instead: Some(instead), ..self }
    }

    pub fn value(&self, case: &Case) -> f64 {
        (self.value)(case)
    }

    /// What an order holds does not depend on what it costs.
    fn stages_alike(&self) -> Option<&'static Condition> {
        (self.quantity != Quantity::PeakActivations).then_some(&ALIKE)
    }

    /// The region in words.
    pub fn region(&self) -> String {
        let mut words = self.region.iter().map(|condition| condition.text).collect::<Vec<_>>().join("; ");
        if let Some(instead) = &self.instead {
            words += &format!("; these only unless {}", instead.text);
        }
        match (self.stages_alike(), words.is_empty()) {
            (Some(alike), true) => alike.text.to_string(),
            (Some(alike), false) => format!("{}; {words}", alike.text),
            (None, true) => "all sizes and costs".to_string(),
            (None, false) => words,
        }
    }

    /// The conditions that `case` does not meet.
    pub fn broken(&self, case: &Case) -> Vec<&'static str> {
        let waived = self.instead.as_ref().is_some_and(|instead| (instead.holds)(case));
        let region = if waived { &[] } else { self.region };
        let conditions = self.stages_alike().into_iter().chain(region);
        conditions.filter(|condition| !(condition.holds)(case)).map(|condition| condition.text).collect()
    }
}
