//! Costs whose stages are known by their components.

use super::{Alone, Components, alone, pair};
use crate::costs::{Costs, Numbers, Table};

impl Costs {
    /// F, I, W and B by stage and fused pairs by stage pair; one number for all where only one stage is given.
    pub fn of_components(stages: &[&Components]) -> Costs {
        let kinds = Kinds::of(stages);
        let numbers = |what| match kinds.numbers(|stage| alone(stage, what).duration()) {
            numbers if stages.len() == 1 => Numbers::One(numbers[0]),
            numbers => Numbers::Each(numbers),
        };
        let pairs = kinds.pairs();
        let overlap = match stages.len() {
            1 => Table::One(pairs[0]),
            size => Table::Each { size, cells: pairs },
        };
        Costs {
            forward: numbers(Alone::Forward),
            backward_input: numbers(Alone::BackwardInput),
            backward_weight: numbers(Alone::BackwardWeight),
            backward: Some(numbers(Alone::Backward)),
            overlap: Some(overlap),
            ..Costs::default()
        }
    }
}

/// Stages that are equal are laid out once: there are many stages and few kinds of them.
struct Kinds<'a> {
    different: Vec<&'a Components>,
    /// Of each stage.
    kind: Vec<usize>,
}

impl<'a> Kinds<'a> {
    fn of(stages: &[&'a Components]) -> Self {
        let mut kinds = Kinds { different: Vec::new(), kind: Vec::new() };
        for &stage in stages {
            let known = kinds.different.iter().position(|&other| other == stage);
            kinds.kind.push(known.unwrap_or_else(|| {
                kinds.different.push(stage);
                kinds.different.len() - 1
            }));
        }
        kinds
    }

    fn numbers(&self, duration: impl Fn(&Components) -> f64) -> Vec<f64> {
        let durations: Vec<f64> = self.different.iter().map(|stage| duration(stage)).collect();
        self.kind.iter().map(|&kind| durations[kind]).collect()
    }

    /// Row by row, by the stage of the forward.
    fn pairs(&self) -> Vec<f64> {
        let with =
            |forward: &Components| self.different.iter().map(|b| pair(forward, b).duration()).collect();
        let table: Vec<Vec<f64>> = self.different.iter().map(|forward| with(forward)).collect();
        self.kind
            .iter()
            .flat_map(|&f| self.kind.iter().map(move |&b| (f, b)))
            .map(|(f, b)| table[f][b])
            .collect()
    }
}
