//! Every formula against the simulator at all small sizes; tests/test_formula.py goes further.

use super::*;
use crate::costs::{Numbers, Table};

const SHORT: [(usize, usize); 6] = [(1, 1), (1, 3), (2, 4), (3, 7), (4, 4), (4, 9)];

fn costs([f, i, w, fb, c]: [f64; 5]) -> Costs {
    Costs {
        forward: Numbers::One(f),
        backward_input: Numbers::One(i),
        backward_weight: Numbers::One(w),
        overlap: Some(Table::One(fb)),
        p2p: Table::One(c),
        ..Costs::default()
    }
}

/// Every quantity of every family at this size, where it is legal.
fn figures(ranks: usize, microbatches: usize, costs: &Costs) -> Vec<Figure> {
    let quantities = [Quantity::Idle, Quantity::Makespan, Quantity::Span, Quantity::PeakActivations];
    let asked = FORMULAS.iter().flat_map(|formula| quantities.map(|quantity| (formula, quantity)));
    asked
        .filter_map(|(formula, quantity)| {
            formula.figure(quantity, ranks, microbatches, None, costs.clone()).ok()
        })
        .collect()
}

#[test]
fn every_family_has_formulas() {
    assert!(FORMULAS.iter().map(|formula| formula.family).eq(generate::names()));
    for formula in &FORMULAS {
        assert!(formula.quantities().count() > 0, "{}", formula.family);
        let names: Vec<_> = formula.quantities().collect();
        assert!(names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1));
    }
}

#[test]
fn exact_is_exact() {
    let mut tried = 0;
    for costs in
        [[1., 1., 1., 3., 0.], [5., 5., 4., 12., 2.], [4., 6., 3., 9., 1.], [7., 3., 2., 8., 0.]].map(costs)
    {
        for ranks in 1..=5 {
            for microbatches in 1..=11 {
                for figure in figures(ranks, microbatches, &costs).iter().filter(|figure| figure.exact()) {
                    let found = figure.simulated().unwrap();
                    assert_eq!(found.value, figure.value(), "{}", figure.describe());
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 4000, "{tried}");
}

#[test]
fn why_names_each_condition_that_fails() {
    let figure = |costs| find("zb-v").unwrap().figure(Quantity::Span, 3, 5, None, costs).unwrap();
    assert_eq!(figure(costs([2., 2., 2., 0., 1.])).why(), None);
    let why = figure(costs([3., 2., 1., 0., 1.])).why().unwrap();
    assert_eq!(
        why,
        "not met: F ≤ I; 2c ≤ W (here p = 3, m = 5, v = 2; F = 3, I = 2, W = 1, B = 3, FB = 0, c = 1)"
    );
    assert!(why.contains(&figure(Costs::default()).region().split("; ").nth(2).unwrap().to_string()));
}

#[test]
fn stages_of_unequal_costs_are_taken_by_their_mean() {
    let uneven = Costs {
        forward: Numbers::Each(vec![1.0, 2.0, 6.0]),
        ..Costs::default()
    };
    let figure = |quantity| find("gpipe").unwrap().figure(quantity, 3, 4, None, uneven.clone()).unwrap();
    let makespan = figure(Quantity::Makespan);
    assert_eq!((makespan.exact(), makespan.value()), (false, 30.0));
    assert!(
        makespan.why().unwrap().contains("stages cost the same, hops too, and nothing comes after the slots (here p = 3, m = 4; in the mean F = 3")
    );
    assert!(figure(Quantity::PeakActivations).exact());
}

#[test]
fn what_is_refused() {
    let refused = |family: &str, quantity, ranks, microbatches, costs| {
        find(family)
            .and_then(|formula| formula.figure(quantity, ranks, microbatches, None, costs))
            .err()
            .unwrap()
    };
    let error = refused("v-half", Quantity::Idle, 4, 8, Costs::default());
    assert_eq!(error.to_string(), "v-half has no formula of bubble; it has peak_activations");
    assert!(matches!(refused("tree", Quantity::Idle, 4, 8, Costs::default()), Error::UnknownFamily { .. }));
    for (ranks, microbatches) in [(0, 8), (3, 8), (4, 7)] {
        let legal = generate::find("dualpipe").unwrap().generate(ranks, microbatches, None).unwrap_err();
        assert_eq!(refused("dualpipe", Quantity::Idle, ranks, microbatches, Costs::default()), legal);
    }
    let uneven = Costs { forward: Numbers::Each(vec![1.0; 3]), ..Costs::default() };
    let too_long = Costs { forward: Numbers::One(1e308), ..Costs::default() };
    for costs in [uneven, too_long] {
        assert!(matches!(refused("1f1b", Quantity::Makespan, 2, 8, costs), Error::Cost { .. }));
    }
}

#[test]
fn a_bubble_is_counted_as_its_papers_do() {
    for (ranks, microbatches) in SHORT {
        for figure in figures(ranks, microbatches, &Costs::default()) {
            let by_span = ["zb-h2", "zb-v"].contains(&figure.family());
            if figure.quantity().name() == "bubble" {
                assert_eq!(figure.quantity() == Quantity::IdleWithin, by_span, "{}", figure.family());
            }
        }
    }
}
