//! The parts of a network in the form that kernels read.

use bitgear_core::kernels::{
    Bias, Class, ConvShape, Kernels, MapLayout, Packed, PackedLen, PackedMut, Run, SinglePrecision,
    Source, Terms, Weights, channel_bound,
};

use super::model::{IntegerModel, MacStep, NOWHERE};

/// A MAC layer's weights and bias.
pub(super) struct Layer {
    pub(super) class: Class,
    /// Geometry; a single row of pixels where that is the same, since kernels work along rows.
    pub(super) shape: ConvShape,
    /// Whether results and residual are single rows, too.
    single_row: bool,
    packed: PackedWeights,
    terms: LayerTerms,
}

enum PackedWeights {
    None,
    I8(Aligned<i8>),
    I16(Aligned<i16>),
}

/// Memory that begins with a cache line, so that no vector of weights lies in two.
struct Aligned<T> {
    memory: Vec<T>,
    start: usize,
}

impl<T: Clone + Default> Aligned<T> {
    const LINE: usize = 64;

    fn new(len: usize) -> Self {
        let mut memory = vec![T::default(); len + Self::LINE / size_of::<T>()];
        // `usize::MAX` where it can't be told.
        let start = memory.as_ptr().align_offset(Self::LINE).min(memory.len() - len);
        memory.truncate(start + len);
        Self { memory, start }
    }

    fn get(&self) -> &[T] {
        &self.memory[self.start..]
    }

    fn get_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..]
    }
}

enum LayerTerms {
    Narrow { bias: Vec<i32>, residual: Vec<i32> },
    Wide,
}

impl Layer {
    /// Chooses the kernel and packs the weights for it.
    pub(super) fn new(model: &IntegerModel, step: &MacStep, kernels: Kernels) -> Self {
        let bits = model.maps[step.input].scale().bits;
        let residual = step.residual.iter().map(|(map, _)| *map);
        let others = step.outputs.iter().map(|output| output.map).chain(residual);
        let all_rows = others.into_iter().all(|map| model.maps[map].layout.single_row().is_some());
        let single_row = step.shape.single_row().filter(|_| all_rows);
        let shape = single_row.unwrap_or(step.shape);
        let class = kernels.class(&shape, &step.codes, bits);
        Self {
            class,
            shape,
            single_row: single_row.is_some(),
            packed: pack(class, &shape, &step.codes),
            terms: terms(model, step),
        }
    }

    /// How the layer sees a result or residual.
    pub(super) fn layout(&self, layout: MapLayout) -> MapLayout {
        if self.single_row { layout.single_row().unwrap_or(layout) } else { layout }
    }

    /// Whether kernels read packed weights only.
    pub(super) fn is_packed(&self) -> bool {
        !matches!(self.packed, PackedWeights::None)
    }

    /// Whether single precision is proved exact for what follows the sums.
    pub(super) fn is_narrow(&self) -> bool {
        matches!(self.terms, LayerTerms::Narrow { .. })
    }

    pub(super) fn weights<'a>(&'a self, step: &'a MacStep) -> Weights<'a> {
        let packed = match &self.packed {
            PackedWeights::None => Packed::None,
            PackedWeights::I8(codes) => Packed::I8(codes.get()),
            PackedWeights::I16(codes) => Packed::I16(codes.get()),
        };
        Weights { class: self.class, plain: &step.codes, packed }
    }

    pub(super) fn terms<'a>(
        &'a self,
        step: &'a MacStep,
        residual: Option<Source<'a>>,
    ) -> Terms<'a> {
        let bias = match &self.terms {
            LayerTerms::Narrow { bias, residual } => Bias::Narrow { bias, residual },
            LayerTerms::Wide => Bias::Wide {
                bias: &step.bias,
                residual: step.residual.as_ref().map_or(&[], |(_, m)| m),
            },
        };
        Terms { shift: step.shift, bias, residual }
    }
}

/// The moves that fill a map in (y, x, channel) order from the given places of another's memory, except
/// where they are [`NOWHERE`].
pub(super) fn runs(from: &[u32], layout: &MapLayout) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (k, &from) in from.iter().enumerate().filter(|&(_, &from)| from != NOWHERE) {
        let (pixel, channel) = (k / layout.channels, k % layout.channels);
        let to = layout.offset(pixel / layout.width, pixel % layout.width) + channel;
        match runs.last_mut() {
            Some(run) if (from, to as u32) == (run.from + run.len, run.to + run.len) => {
                run.len += 1;
            }
            _ => runs.push(Run { from, to: to as u32, len: 1 }),
        }
    }
    runs
}

fn pack(class: Class, shape: &ConvShape, plain: &[i16]) -> PackedWeights {
    match Kernels::packed_len(class, shape) {
        PackedLen::None => PackedWeights::None,
        PackedLen::I8(len) => {
            let mut codes = Aligned::new(len);
            Kernels::pack(class, shape, plain, PackedMut::I8(codes.get_mut()));
            PackedWeights::I8(codes)
        }
        PackedLen::I16(len) => {
            let mut codes = Aligned::new(len);
            Kernels::pack(class, shape, plain, PackedMut::I16(codes.get_mut()));
            PackedWeights::I16(codes)
        }
    }
}

/// Proves, from the actual codes, whether single precision is exact for every input.
fn terms(model: &IntegerModel, step: &MacStep) -> LayerTerms {
    let bits = model.maps[step.input].scale().bits;
    let (map, residual) =
        step.residual.as_ref().map_or((None, &[][..]), |(map, r)| (Some(*map), &r[..]));
    let code_max = map.map_or(0, |map| i64::from(model.maps[map].scale().bits.code_max()));
    let narrow = (0..step.shape.out_channels).all(|channel| {
        let proof = SinglePrecision {
            acc: channel_bound(&step.shape, &step.codes, bits, channel),
            shift: step.shift,
            bias: step.bias[channel],
            residual: residual
                .get(channel)
                .map_or(0, |&m| m.saturating_abs().saturating_mul(code_max)),
        };
        residual.get(channel).is_none_or(|&m| i32::try_from(m).is_ok())
            && step
                .outputs
                .iter()
                .all(|o| proof.is_exact(o.multipliers[channel], o.zero, [o.low, o.high]))
    });
    if !narrow {
        return LayerTerms::Wide;
    }
    let narrowed = |values: &[i64]| values.iter().map(|&v| v as i32).collect();
    LayerTerms::Narrow { bias: narrowed(&step.bias), residual: narrowed(residual) }
}
