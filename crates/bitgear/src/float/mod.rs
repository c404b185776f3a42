//! The float network: the reference, and what calibration looks at.
//!
//! Every sample of a batch is computed by itself, so a result depends neither on the batch it is in
//! nor on the number of threads.

mod attention;
mod backward;
mod conv;
mod depthwise;
mod ops;

pub use attention::{layer_norm, softmax};
pub(crate) use backward::gradients;
pub use ops::activation;
pub(crate) use ops::apply;

use crate::graph::{Graph, Op, TensorId};
use crate::tensor::Tensor;

/// Scores of a batch (N, sample shape) of preprocessed samples, as (N, classes).
pub fn run(graph: &Graph, batch: &Tensor) -> Tensor {
    let mut scores = None;
    run_with(graph, batch, &mut |id, tensor| {
        if id == graph.output {
            scores = Some(tensor.clone());
        }
    });
    let scores = scores.expect("the graph's output is visited");
    let samples = batch.shape()[0];
    scores.reshaped([samples, graph.classes()])
}

/// Runs a batch (N, sample shape) and shows every tensor, the input included, as (N, shape). A
/// tensor is freed after its last reader ran.
///
/// # Panics
///
/// When the batch's shape is not that of the graph's input.
pub fn run_with(graph: &Graph, batch: &Tensor, visit: &mut impl FnMut(TensorId, &Tensor)) {
    assert_eq!(&batch.shape()[1..], graph.shape(graph.input), "shape of a sample");
    let samples = batch.shape()[0];
    let mut last_reader = vec![0; graph.tensors.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            last_reader[input.0] = index;
        }
    }
    let mut values: Vec<Option<Tensor>> = vec![None; graph.tensors.len()];
    visit(graph.input, batch);
    values[graph.input.0] = Some(batch.clone());
    for (index, node) in graph.nodes.iter().enumerate() {
        let shape = graph.shape(node.output);
        let output = if let Op::Constant(constant) = &node.op {
            constant.clone()
        } else {
            let operands: Vec<(&[usize], &Tensor)> = node
                .inputs
                .iter()
                .map(|&id| {
                    let value = values[id.0].as_ref().expect("operands are computed before");
                    (graph.shape(id), value)
                })
                .collect();
            let size: usize = shape.iter().product();
            let mut out = vec![0.0; samples * size];
            for (sample, out) in out.chunks_exact_mut(size).enumerate() {
                let operands: Vec<(&[usize], &[f32])> = operands
                    .iter()
                    .map(|(shape, tensor)| {
                        let size: usize = shape.iter().product();
                        let all = tensor.values();
                        // A constant is the same for every sample.
                        let start = if all.len() == size { 0 } else { sample * size };
                        (*shape, &all[start..start + size])
                    })
                    .collect();
                ops::apply(&node.op, &operands, shape, out);
            }
            let shape: Vec<usize> = [&[samples], shape].concat();
            Tensor::new(shape, out)
        };
        visit(node.output, &output);
        values[node.output.0] = Some(output);
        for input in &node.inputs {
            if last_reader[input.0] == index {
                values[input.0] = None;
            }
        }
    }
}
