//! Points by plain quantization, which is quick: for what depends on widths and shapes alone, as kernels
//! and times do.

use std::convert::Infallible;
use std::path::Path;

use bitgear::characterize::CharacterizeError;
use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::execute::IntegerModel;
use bitgear::graph::Graph;
use bitgear::onnx::{self, ImportError};
use bitgear::quantize::{Point, calibrate, quantize};
use bitgear::tensor::Tensor;
use bitgear::trace::Random;

use crate::Failure;

/// Samples that calibrate.
pub(super) const CALIBRATION: usize = 16;

/// The network of an ONNX file.
pub(super) fn import(model: &Path) -> Result<Graph, Failure> {
    onnx::import_file(model).map_err(|error| match error {
        ImportError::Read { .. } => Failure::from(error),
        error => Failure::from(CharacterizeError::Import(model.display().to_string(), error)),
    })
}

/// The first samples of the data, from the front again where they are too few, or noise of mean 0 and
/// variance 1.
pub(super) fn samples(
    graph: &Graph,
    data: Option<&Path>,
    preprocess: &Preprocess,
    seed: u64,
    count: usize,
) -> Result<Tensor, Failure> {
    let shape = graph.shape(graph.input);
    let Some(path) = data else {
        let mut random = Random::new(seed);
        // The sum of four uniform numbers, each of variance 1/12.
        let mut number = || (random.next_u64() >> 40) as f32 / (1 << 24) as f32 - 0.5;
        let len = count * shape.iter().product::<usize>();
        let values = (0..len).map(|_| (0..4).map(|_| number()).sum::<f32>() * 3.0_f32.sqrt());
        return Ok(Tensor::new([&[count], shape].concat(), values.collect()));
    };
    let data = Dataset::read(&Source::Path(path.to_owned()))?;
    data.check(shape, preprocess)?;
    let indices: Vec<usize> = (0..count).map(|i| i % data.len()).collect();
    Ok(data.batch(&indices, preprocess))
}

/// The points, calibrated on the first samples.
pub(super) fn models(
    graph: &Graph,
    points: &[String],
    samples: &Tensor,
) -> Result<Vec<IntegerModel>, Failure> {
    let ranges = calibrate(graph, CALIBRATION, |span| {
        Ok::<_, Infallible>(rows(samples, span.start, span.len()))
    });
    let ranges = match ranges {
        Ok(ranges) => ranges,
        Err(never) => match never {},
    };
    let points: Vec<Point> = points.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    Ok(points.iter().map(|point| quantize(graph, &ranges, point)).collect::<Result<_, _>>()?)
}

/// Some samples of a batch.
pub(super) fn rows(batch: &Tensor, first: usize, count: usize) -> Tensor {
    let mut shape = batch.shape().to_vec();
    let len = shape[1..].iter().product::<usize>();
    shape[0] = count;
    Tensor::new(shape, batch.values()[first * len..][..count * len].to_vec())
}
