//! The lower convex hull of energy and drop.

use super::*;

proptest! {
    /// Every vertex is the cheapest at its drop, and nothing lies below an edge.
    #[test]
    fn the_hull_is_that_of_trying_everything(
        rows in 1_usize..14, seed: u64, shares in shares(), stages in 1_usize..=3,
        max_escalation in prop_oneof![Just(1.0), 0.2_f64..0.8],
    ) {
        let trace = mixed(trace(rows, 4, seed), shares);
        let mut candidates = candidates(&trace, stages);
        candidates.rules.max_escalation = max_escalation;
        let all: Vec<usize> = (0..rows).collect();
        let hull = candidates.hull(&all, Pool::Policies);
        for vertex in &hull {
            let outcome = candidates.outcome(&vertex.choice, &all);
            prop_assert!((outcome.drop - vertex.drop).abs() < 1e-12);
            prop_assert!((outcome.energy.chip_uj - vertex.chip_uj).abs() < 1e-12);
            let best = brute_force(&candidates, &all, Bound::plain(vertex.drop));
            prop_assert!((best - vertex.chip_uj).abs() < 1e-9, "{:?} {}", vertex, best);
        }
        for pair in hull.windows(2) {
            prop_assert!(pair[0].chip_uj < pair[1].chip_uj && pair[0].drop > pair[1].drop);
            // Halfway along an edge, something dearer or as dear keeps the bound.
            for part in [0.25, 0.5, 0.75] {
                let at = |a: f64, b: f64| a + part * (b - a);
                let drop = at(pair[0].drop, pair[1].drop);
                let best = brute_force(&candidates, &all, Bound::plain(drop));
                prop_assert!(best >= at(pair[0].chip_uj, pair[1].chip_uj) - 1e-9);
            }
        }
        // Nothing is right more often than the last vertex.
        let last = hull.last().expect("one point is always there");
        let less = Bound::plain(last.drop - 1e-6);
        prop_assert!(brute_force(&candidates, &all, less).is_infinite());
    }
}

#[test]
fn a_third_stage_is_on_the_hull_where_it_pays() {
    let long = (0..10).filter(|&seed| {
        let trace = trace(60, 4, seed);
        let all: Vec<usize> = (0..60).collect();
        let hull = candidates(&trace, 3).hull(&all, Pool::Policies);
        hull.iter().any(|vertex| vertex.choice.stages.len() == 3)
    });
    assert!(long.count() > 0);
}
