//! Checks of matrix products and float islands.

use bitgear_core::kernels::MapLayout;

use super::{Check, IntegerModel, MapId, check_terms, ensure, same_pixels};
use crate::execute::island::{Island, IslandStep, MatMulStep};

impl IntegerModel {
    pub(super) fn check_matmul(&self, step: &MatMulStep) -> Check {
        let MatMulStep { matrices, a, b, outputs, .. } = step;
        let out = self.outputs(outputs, None)?;
        let sizes = |layout: &MapLayout| matrices.sizes(layout);
        let (left, right) = (self.codes(*a)?.0, self.codes(*b)?.0);
        let (left, right, out) = (sizes(&left), sizes(&right), sizes(&out));
        let ([count, rows, inner], [others, depth, columns]) = (left, right);
        ensure(count == others && inner == depth && out == [count, rows, columns], || {
            format!("matrices {left:?} and {right:?} can't be multiplied to {out:?}")
        })?;
        // Twice the largest distance of a code from the zero point.
        let reach = |map: MapId| -> Result<i128, String> {
            let scale = self.map(map)?.scale();
            let (zero, high) = (scale.twice_zero(), 2 * i64::from(scale.bits.code_max()));
            Ok(i128::from(zero.abs().max((high - zero).abs())))
        };
        check_terms(inner as i128 * reach(*a)? * reach(*b)?, outputs, [*a, *b])
    }

    pub(super) fn check_island(&self, step: &IslandStep) -> Check {
        let (from, _) = self.codes(step.input)?;
        ensure(!step.outputs.is_empty(), || "step without a result".to_owned())?;
        for (index, &output) in step.outputs.iter().enumerate() {
            let (to, _) = self.codes(output)?;
            ensure(same_pixels(&from, &to), || "shapes differ".to_owned())?;
            ensure(output != step.input, || "a map is operand and result of one step".to_owned())?;
            ensure(!step.outputs[..index].contains(&output), || {
                format!("map {output} is written twice")
            })?;
        }
        let Island::LayerNorm { scale, shift, epsilon } = &step.function else { return Ok(()) };
        let [_, _, columns] = step.matrices.sizes(&from);
        ensure(scale.len() == columns && shift.len() == columns, || {
            format!("expected {columns} scales and shifts, got {} and {}", scale.len(), shift.len())
        })?;
        ensure(scale.iter().chain(shift).all(|v| v.is_finite()), || {
            "scales and shifts must be finite".to_owned()
        })?;
        ensure(*epsilon > 0.0 && epsilon.is_finite(), || {
            format!("epsilon must be positive, got {epsilon}")
        })
    }
}
