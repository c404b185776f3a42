//! How many points a run looks at: those that a budget of time has room for.

use super::points::{pairs, with_ends};
use crate::quantize::{Point, Quantizer};

/// Speed of tracing that budgets are counted by.
const MACS_PER_SECOND: f64 = 20e9;

/// Points by what they usually bring: a safe one, narrow ones that the first and last layer do not
/// spoil, mixed ones, then what lies between.
const ORDER: [Next; 16] = [
    Next::Uniform(8),
    Next::Ends(4),
    Next::Mixed,
    Next::Mixed,
    Next::Uniform(4),
    Next::Uniform(6),
    Next::Ends(3),
    Next::Mixed,
    Next::Mixed,
    Next::Ends(2),
    Next::Uniform(5),
    Next::Mixed,
    Next::Mixed,
    Next::Uniform(3),
    Next::Uniform(2),
    Next::Uniform(7),
];

#[derive(Clone, Copy)]
enum Next {
    /// All layers alike, with weights of so many bits.
    Uniform(u8),
    /// The same with wider first and last layers.
    Ends(u8),
    /// One more mixed point.
    Mixed,
}

/// Nominal seconds of the parts of a run: work over fixed speeds.
pub(super) struct Costs {
    /// The float network's run over all samples, in all views.
    pub(super) float: f64,
    /// Fitting a point, and tracing it in all views.
    pub(super) point: f64,
    /// Tracing a plain one, in one view.
    pub(super) plain: f64,
    /// Measuring what few bits do to each layer.
    pub(super) sensitivity: f64,
}

impl Costs {
    /// `macs` are those of all samples once through the network; `uniform` points say at how many pairs of
    /// widths sensitivities are measured.
    pub(super) fn new(
        quantizer: &Quantizer<'_>,
        macs: f64,
        mirror: bool,
        uniform: &[Point],
    ) -> Self {
        let plain = macs / MACS_PER_SECOND;
        let float = if mirror { 2.0 * plain } else { plain };
        let point = quantizer.fitting_seconds() + float;
        let sensitivity = quantizer.sensitivity_seconds(pairs(uniform).len());
        Self { float, point, plain, sensitivity }
    }
}

/// Of the `uniform` points and those with wider ends the first that `budget` seconds have room for, and
/// how many mixed ones beside them. The float network and the widest point are traced in any case.
pub(super) fn affordable(uniform: &[Point], costs: &Costs, budget: f64) -> (Vec<Point>, usize) {
    let of_width = |bits: u8| {
        let found = uniform.iter().filter(move |p| p.widths(0, 1).weights.get() == bits);
        found.cloned().collect::<Vec<_>>()
    };
    let (mut points, mut mixed) = (Vec::new(), 0);
    // The widest point is fitted plainly.
    let mut seconds = costs.float + 2.0 * costs.plain;
    let mut afford = |cost: f64| {
        seconds += cost;
        seconds <= budget
    };
    for next in ORDER {
        let (more, plain) = match next {
            Next::Uniform(bits) => (of_width(bits), costs.plain),
            Next::Ends(bits) => (with_ends(&of_width(bits)), 0.0),
            // Of one width alone nothing can be mixed.
            Next::Mixed if pairs(uniform).len() < 2 => continue,
            Next::Mixed => {
                let sensitivity = if mixed == 0 { costs.sensitivity } else { 0.0 };
                if !afford(costs.point + sensitivity) {
                    break;
                }
                mixed += 1;
                continue;
            }
        };
        let cost = more.len() as f64 * (costs.point + plain);
        if !afford(cost) {
            break;
        }
        points.extend(more);
    }
    (points, mixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_decides_how_many_points_and_they_keep_to_it() {
        let uniform: Vec<Point> = (2..9).map(|b| format!("w{b}a{b}").parse().unwrap()).collect();
        let costs = Costs { float: 1.0, point: 10.0, plain: 2.0, sensitivity: 30.0 };
        let mut before = (0, 0);
        for budget in (0..30).map(|i| f64::from(10 * i)) {
            let (points, mixed) = affordable(&uniform, &costs, budget);
            let plain = points.iter().filter(|p| p.is_uniform()).count() as f64;
            let fitted = (points.len() + mixed) as f64;
            let sensitivity = if mixed > 0 { costs.sensitivity } else { 0.0 };
            let seconds = 5.0 + fitted * costs.point + plain * costs.plain + sensitivity;
            assert!(seconds <= budget || fitted == 0.0, "{seconds} of {budget} seconds");
            assert!(points.len() >= before.0 && mixed >= before.1);
            before = (points.len(), mixed);
        }
        assert_eq!(before, (uniform.len() + 3, 6), "the last budget has room for everything");
    }

    #[test]
    fn where_nothing_can_be_mixed_no_time_is_kept_for_it() {
        let costs = Costs { float: 1.0, point: 10.0, plain: 2.0, sensitivity: 1e9 };
        let (points, mixed) = affordable(&["w8a8".parse().unwrap()], &costs, 100.0);
        assert_eq!((points.len(), mixed), (1, 0));
    }
}
