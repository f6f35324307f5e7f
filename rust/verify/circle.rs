//! A shortest circle of ranks that wait for each other.

use std::collections::VecDeque;

use crate::schedule::Rank;

/// The most steps of all searches together: up to 4000 ranks all of them are searched from.
const SEARCH_BUDGET: usize = 1 << 24;

/// A shortest circle, as each of its ranks and why it waits for the next; empty if there is none. `waits` says whom
/// a rank waits for, and why.
///
/// Searches breadth first for the shortest way from a rank back to it: from all of them, or as many as the budget
/// allows, of which the first is known to be on a circle.
pub fn shortest_circle<W: Copy>(ranks: usize, waits: impl Fn(Rank) -> Vec<(Rank, W)>) -> Vec<(Rank, W)> {
    let searches = (SEARCH_BUDGET / ranks.max(1)).max(1);
    let starts = on_a_circle(ranks, &waits).into_iter().chain(0..ranks).take(searches);
    let circles = starts.filter_map(|start| circle_from(start, ranks, &waits));
    circles.min_by_key(Vec::len).unwrap_or_default()
}

/// Follows the first rank that waits, for as many steps as there are ranks.
fn on_a_circle<W>(ranks: usize, waits: &impl Fn(Rank) -> Vec<(Rank, W)>) -> Option<Rank> {
    let mut at = (0..ranks).find(|&rank| !waits(rank).is_empty())?;
    for _ in 0..ranks {
        at = waits(at).first()?.0;
    }
    Some(at)
}

fn circle_from<W: Copy>(
    start: Rank,
    ranks: usize,
    waits: &impl Fn(Rank) -> Vec<(Rank, W)>,
) -> Option<Vec<(Rank, W)>> {
    let mut reached_by: Vec<Option<(Rank, W)>> = vec![None; ranks];
    let mut queue = VecDeque::from([start]);
    while let Some(rank) = queue.pop_front() {
        for (on, why) in waits(rank) {
            if reached_by[on].is_none() {
                reached_by[on] = Some((rank, why));
                queue.push_back(on);
            }
            if on == start {
                return Some(way_back(&reached_by, start));
            }
        }
    }
    None
}

fn way_back<W: Copy>(reached_by: &[Option<(Rank, W)>], start: Rank) -> Vec<(Rank, W)> {
    let mut circle = Vec::new();
    let mut at = start;
    while let Some(wait) = reached_by[at] {
        circle.push(wait);
        at = wait.0;
        if at == start {
            break;
        }
    }
    circle.reverse();
    circle
}
