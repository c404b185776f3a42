//! What transformers add: products of computed tensors, layer norms, softmax, picking a token.

use super::window::sample_axis;
use super::{Current, Importer, Value};
use crate::graph::{Op, SliceRange};

/// Since this version a softmax works along one axis; before, along all from `axis` on.
const SOFTMAX_OF_ONE_AXIS: i64 = 13;

impl Importer {
    pub(super) fn matrix_product(&mut self, node: &Current<'_>) -> Result<Value, String> {
        let (a, b) = (node.sample(0)?, node.sample(1)?);
        let (x, y) = (self.shape(a), self.shape(b));
        if x.len() != y.len() || x.len() < 2 {
            // Aligned at the end, one sample's batch axis would meet the other's rows.
            return Err(format!(
                "expected two computed matrices of one rank, got samples of shapes {x:?} and {y:?}"
            ));
        }
        self.push(&node.name, Op::MatMul { scale: 1.0 }, vec![a, b]).map(Value::Sample)
    }

    pub(super) fn layer_norm(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let input = node.sample(0)?;
        node.attributes.only("stash_type", 1)?;
        if node.proto.output.iter().skip(1).any(|o| !o.is_empty()) {
            return Err("mean and deviation as results are not supported".to_owned());
        }
        let shape = self.shape(input).to_vec();
        let axis = sample_axis(node.attributes.int("axis", -1), shape.len())?;
        if axis + 1 != shape.len() {
            return Err(format!(
                "attribute `axis` must be the last axis, got axis {axis} of a sample {shape:?}"
            ));
        }
        let epsilon = node.attributes.float("epsilon", 1e-5);
        if !(epsilon > 0.0 && epsilon.is_finite()) {
            return Err(format!("attribute `epsilon` must be positive, got {epsilon}"));
        }
        let features = shape[axis];
        let scale = node.required(1)?.to_floats()?;
        let shift = match node.known(2)? {
            Some(shift) => shift.to_floats()?,
            None => vec![0.0; features],
        };
        self.push(&node.name, Op::LayerNorm { scale, shift, epsilon }, vec![input])
            .map(Value::Sample)
    }

    pub(super) fn softmax(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let input = node.sample(0)?;
        let rank = self.shape(input).len();
        let default = if self.opset < SOFTMAX_OF_ONE_AXIS { 1 } else { -1 };
        let axis = sample_axis(node.attributes.int("axis", default), rank)?;
        if axis + 1 != rank {
            return Err(format!(
                "softmax must be along the last axis, got axis {axis} of a sample {:?}",
                self.shape(input)
            ));
        }
        self.push(&node.name, Op::Softmax, vec![input]).map(Value::Sample)
    }

    /// Picks evenly spaced elements along one axis, such as the class token. A single index, which
    /// is no list, drops the axis.
    pub(super) fn gather(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let input = node.sample(0)?;
        let shape = self.shape(input).to_vec();
        let axis = sample_axis(node.attributes.int("axis", 0), shape.len())?;
        let indices = node.required(1)?.clone();
        let size = shape[axis] as i64;
        let at: Vec<i64> = indices
            .to_ints()?
            .into_iter()
            .map(|i| if i < 0 { i.saturating_add(size) } else { i })
            .collect();
        if at.is_empty() || indices.shape.len() > 1 || at.iter().any(|i| !(0..size).contains(i)) {
            return Err(format!("expected an index or a list of indices below {size}, got {at:?}"));
        }
        let step = at.get(1).map_or(1, |second| second - at[0]);
        if step == 0 || at.windows(2).any(|pair| pair[1] - pair[0] != step) {
            return Err(format!("indices {at:?} are not evenly spaced"));
        }
        let mut ranges: Vec<SliceRange> =
            shape.iter().map(|&count| SliceRange { start: 0, count, step: 1 }).collect();
        ranges[axis] = SliceRange { start: at[0] as usize, count: at.len(), step: step as isize };
        let part = self.push(&node.name, Op::Slice { ranges }, vec![input])?;
        if !indices.shape.is_empty() {
            return Ok(Value::Sample(part));
        }
        let kept = (0..shape.len()).filter(|&a| a != axis).map(|a| shape[a]).collect();
        self.reshape(&format!("{}/element", node.name), part, kept).map(Value::Sample)
    }
}
