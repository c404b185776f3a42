//! Runs an [`IntegerModel`]: weights packed once, memory laid out once, samples over all threads.

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitgear_core::kernels::{
    Class, Codes, CodesMut, Kernels, MapLayout, MatrixOperand, Output, Run, Source,
};
use rayon::prelude::*;

use super::arena::{Arena, Buffer};
use super::layer::{Layer, runs};
use super::model::{IntegerModel, MapId, Requantization, Step};
use crate::tensor::Tensor;

/// One operating point, ready to run.
pub struct Engine<'m> {
    model: Cow<'m, IntegerModel>,
    kernels: Kernels,
    /// One per MAC step, in order.
    layers: Vec<Layer>,
    /// One per operand of each gather, in order.
    moves: Vec<Vec<Run>>,
    arena: Arena,
    /// Maps that the next stage goes on from.
    keep: Vec<MapId>,
    /// Memory that was used before, for whoever runs next.
    idle: Mutex<Vec<Workspace>>,
    spare: Mutex<Vec<Kept>>,
}

/// What a step of a network runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelUse {
    /// Name of the layer; empty for what lies between layers.
    pub step: String,
    /// The kernel.
    pub kernel: String,
    /// Multiply-accumulates of the layer.
    pub macs: u64,
}

/// Memory of one running sample: a buffer for every slot of the arena, halos filled.
pub struct Workspace {
    buffers: Vec<Buffer>,
}

/// Where the samples of a batch begin.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// At the network's input: (N, sample shape), row-major.
    Input(&'a [f32]),
    /// At maps that the stage before kept, one `Kept` a sample.
    Maps {
        /// Which maps of this network they are.
        given: &'a [MapId],
        /// Their contents.
        kept: &'a [Kept],
    },
}

/// Where maps go for the next stage, one place a sample, and by their scores of which samples.
pub(super) type Keep<'a> = (&'a mut [Option<Kept>], &'a (dyn Fn(&[i32]) -> bool + Sync));

/// Maps of one sample, for the next stage.
pub(super) struct Kept(Vec<Buffer>);

impl<'m> Engine<'m> {
    /// Packs the model's weights for `kernels`.
    pub fn new(model: &'m IntegerModel, kernels: Kernels) -> Self {
        Self::keeping(Cow::Borrowed(model), kernels, &[])
    }

    /// The same for a model that may be the engine's own, and that keeps the maps `keep` of the samples
    /// that it hands on: the next stage goes on from them, see [`Handoff::kept`](super::Handoff). Of an own
    /// model's weights only what kernels read is kept.
    pub fn keeping(mut model: Cow<'m, IntegerModel>, kernels: Kernels, keep: &[MapId]) -> Self {
        let mut layers = Vec::new();
        for index in 0..model.steps.len() {
            let Step::Mac(step) = &model.steps[index] else { continue };
            let layer = Layer::new(&model, step, kernels);
            if let Cow::Owned(own) = &mut model
                && let Step::Mac(step) = &mut own.steps[index]
                && layer.is_packed()
            {
                step.codes = Vec::new();
            }
            layers.push(layer);
        }
        let moves = model
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Gather { sources, output } => Some((sources, &model.maps[*output].layout)),
                _ => None,
            })
            .flat_map(|(sources, layout)| sources.iter().map(|(_, from)| runs(from, layout)))
            .collect();
        let (arena, keep) = (Arena::new(&model, keep), keep.to_vec());
        let (idle, spare) = Default::default();
        Self { model, kernels, layers, moves, arena, keep, idle, spare }
    }

    /// The model that runs; of its own one, without the weights of packed layers.
    pub fn model(&self) -> &IntegerModel {
        &self.model
    }

    /// How each MAC layer's multiply-accumulates are done: (name, class).
    pub fn classes(&self) -> impl Iterator<Item = (&str, Class)> {
        self.model
            .mac_steps()
            .zip(&self.layers)
            .map(|(step, layer)| (step.name.as_str(), layer.class))
    }

    /// What each step runs, in order.
    pub fn kernels_used(&self) -> Vec<KernelUse> {
        let mut layers = self.layers.iter();
        let used = |step: &Step| match step {
            Step::Mac(mac) => {
                let layer = layers.next().expect("one layer is packed per MAC step");
                let epilogue = if layer.is_narrow() { "" } else { ", wide" };
                let pixels = mac.shape.out_height * mac.shape.out_width;
                KernelUse {
                    step: mac.name.clone(),
                    kernel: format!("{}{epilogue}", layer.class),
                    macs: (pixels * mac.shape.filter_len() * mac.shape.out_channels) as u64,
                }
            }
            other => {
                let kernel = match other {
                    Step::MatMul(_) => "matmul",
                    Step::Island(_) => "island",
                    Step::Combine { .. } => "combine",
                    Step::Product { .. } => "product",
                    Step::Average { .. } => "average",
                    Step::MaxPool { .. } => "max pool",
                    Step::Lookup { .. } => "lookup",
                    Step::Gather { .. } => "gather",
                    Step::Mac(_) => unreachable!("handled above"),
                };
                KernelUse { step: String::new(), kernel: kernel.to_owned(), macs: 0 }
            }
        };
        let quantize =
            KernelUse { step: "input".to_owned(), kernel: "quantize".to_owned(), macs: 0 };
        std::iter::once(quantize).chain(self.model.steps.iter().map(used)).collect()
    }

    /// Runs one preprocessed sample and calls `after` with the number of each step, in the order of
    /// [`Self::kernels_used`], when it is done.
    pub fn observe(&self, sample: &Tensor, after: &mut dyn FnMut(usize)) {
        let mut workspace = self.workspace();
        self.quantize(&mut workspace, sample.values());
        after(0);
        self.run(&mut workspace, &mut |step| after(step + 1));
        lock(&self.idle).push(workspace);
    }

    /// For each MAC layer whether single precision is proved exact for what follows its sum, which is
    /// faster; see `Bias::Narrow` of the kernels.
    pub fn narrow(&self) -> impl Iterator<Item = bool> {
        self.layers.iter().map(Layer::is_narrow)
    }

    /// Scores of a batch (N, sample shape) of preprocessed samples, as (N, classes) integers, the
    /// samples spread over the current thread pool.
    pub fn scores(&self, batch: &Tensor) -> Vec<i32> {
        let sample_len: usize = self.model.input_shape.iter().product();
        let mut scores = vec![0; batch.values().len() / sample_len.max(1) * self.model.classes()];
        self.scores_into(batch, &mut scores);
        scores
    }

    /// The same into memory of (N, classes). On one thread that has run an inference before, nothing is allocated,
    /// unless the network has float islands or layers with more than three operands or versions of a result.
    ///
    /// # Panics
    ///
    /// When the memory has another size.
    pub fn scores_into(&self, batch: &Tensor, scores: &mut [i32]) {
        self.run_batch(Start::Input(batch.values()), scores, None);
    }

    /// Scores of a batch, and into `keep` the kept maps of the samples that its function picks by their scores;
    /// [`Self::give_back`] takes them.
    pub(super) fn run_batch(&self, start: Start<'_>, scores: &mut [i32], keep: Option<Keep<'_>>) {
        let sample_len: usize = self.model.input_shape.iter().product();
        let classes = self.model.classes();
        let samples = match start {
            Start::Input(batch) => batch.len() / sample_len.max(1),
            Start::Maps { kept, .. } => kept.len(),
        };
        assert_eq!(scores.len(), samples * classes, "scores of {samples} samples");
        let share = samples.div_ceil(4 * rayon::current_num_threads()).max(1);
        let run = |chunk: usize,
                   scores: &mut [i32],
                   after: &mut dyn FnMut(usize, &[i32], &Workspace)| {
            let mut workspace = self.workspace();
            for (i, scores) in scores.chunks_exact_mut(classes).enumerate() {
                let sample = chunk * share + i;
                match start {
                    Start::Input(batch) => {
                        self.quantize(&mut workspace, &batch[sample * sample_len..][..sample_len]);
                    }
                    Start::Maps { given, kept } => {
                        for (&map, buffer) in given.iter().zip(&kept[sample].0) {
                            workspace.buffers[self.arena.slot_of[map]].begin_with(buffer);
                        }
                    }
                }
                scores.copy_from_slice(self.run(&mut workspace, &mut |_| ()));
                after(i, scores, &workspace);
            }
            lock(&self.idle).push(workspace);
        };
        let chunks = scores.par_chunks_mut(share * classes);
        let Some((kept, hands_on)) = keep else {
            return chunks.enumerate().for_each(|(i, scores)| run(i, scores, &mut |_, _, _| ()));
        };
        chunks.zip(kept.par_chunks_mut(share)).enumerate().for_each(|(i, (scores, kept))| {
            run(i, scores, &mut |i, scores, workspace| {
                kept[i] = hands_on(scores).then(|| self.kept(workspace));
            });
        });
    }

    /// Copies of the maps that the next stage goes on from, in memory that was given back, if there is any.
    fn kept(&self, workspace: &Workspace) -> Kept {
        let maps = self.keep.iter().map(|&map| (map, &workspace.buffers[self.arena.slot_of[map]]));
        let spare = lock(&self.spare).pop();
        if let Some(mut kept) = spare {
            for (buffer, (_, from)) in kept.0.iter_mut().zip(maps) {
                buffer.fill_from(from);
            }
            return kept;
        }
        Kept(maps.map(|(map, from)| from.prefix(self.len(map))).collect())
    }

    /// Takes memory of maps that this engine kept, for the next ones.
    pub(super) fn give_back(&self, kept: impl Iterator<Item = Kept>) {
        lock(&self.spare).extend(kept);
    }

    /// Memory to run samples in, used before if there is any.
    fn workspace(&self) -> Workspace {
        let idle = lock(&self.idle).pop();
        if let Some(workspace) = idle {
            return workspace;
        }
        let mut workspace = Workspace { buffers: self.arena.buffers(&self.model) };
        for (id, map) in self.model.maps.iter().enumerate() {
            let buffer = &mut workspace.buffers[self.arena.slot_of[id]];
            if !map.constant.is_empty() {
                store(buffer, map, |k| map.constant[k]);
            }
        }
        workspace
    }

    /// Stores one preprocessed sample, in the graph's layout, as codes. The workspace is of this
    /// engine.
    fn quantize(&self, workspace: &mut Workspace, input: &[f32]) {
        let model = &self.model;
        let planar = model.input_shape.len() == 3;
        for &index in &model.inputs {
            let map = &model.maps[index];
            let layout = &map.layout;
            let buffer = &mut workspace.buffers[self.arena.slot_of[index]];
            let codes = buffer.codes_mut(layout.len());
            self.kernels.quantize(input, planar, map.scale().quantization(), codes, layout);
        }
    }

    /// Runs all steps on what the workspace holds, and gives the scores.
    fn run<'w>(&self, workspace: &'w mut Workspace, after: &mut dyn FnMut(usize)) -> &'w [i32] {
        let model = &self.model;
        let (mut layers, mut moves) = (self.layers.iter(), self.moves.iter());
        for (index, step) in model.steps.iter().enumerate() {
            self.step(step, &mut layers, &mut moves, &mut workspace.buffers);
            after(index);
        }
        match &workspace.buffers[self.arena.slot_of[model.scores]] {
            Buffer::I32(scores) => &scores[..model.classes()],
            _ => unreachable!("the scores' map holds scores"),
        }
    }

    fn step<'l>(
        &self,
        step: &'l Step,
        layers: &mut impl Iterator<Item = &'l Layer>,
        moves: &mut impl Iterator<Item = &'l Vec<Run>>,
        buffers: &mut [Buffer],
    ) {
        let kernels = self.kernels;
        let maps = &self.model.maps;
        match step {
            Step::Mac(mac) => {
                let layer = layers.next().expect("one layer is packed per MAC step");
                self.with_outputs(&mac.outputs, buffers, |buffers, outputs| {
                    let residual = mac.residual.as_ref().map(|&(map, _)| Source {
                        codes: self.codes(buffers, map),
                        layout: layer.layout(maps[map].layout),
                    });
                    for output in &mut *outputs {
                        output.layout = layer.layout(output.layout);
                    }
                    let (weights, terms) = (layer.weights(mac), layer.terms(mac, residual));
                    let input = self.codes(buffers, mac.input);
                    kernels.conv(&layer.shape, &weights, input, &terms, outputs);
                });
            }
            Step::MatMul(step) => {
                self.with_outputs(&step.outputs, buffers, |buffers, outputs| {
                    let operand = |map: MapId| MatrixOperand {
                        source: Source {
                            codes: self.codes(buffers, map),
                            layout: maps[map].layout,
                        },
                        twice_zero: maps[map].scale().twice_zero() as i32,
                    };
                    kernels.matmul(step.matrices, operand(step.a), operand(step.b), outputs);
                });
            }
            Step::Island(step) => {
                let values = step.run(self.codes(buffers, step.input), &maps[step.input]);
                for &output in &step.outputs {
                    let scale = maps[output].scale();
                    let buffer = &mut buffers[self.arena.slot_of[output]];
                    store(buffer, &maps[output], |k| scale.code(values[k]));
                }
            }
            Step::Combine { operands, bias, outputs } => {
                self.with_outputs(outputs, buffers, |buffers, outputs| {
                    let operand = |(map, multipliers): &'l (MapId, Vec<i64>)| {
                        let (codes, layout) = (self.codes(buffers, *map), maps[*map].layout);
                        (Source { codes, layout }, &multipliers[..])
                    };
                    // The usual numbers of operands need no allocation.
                    match &operands[..] {
                        [a] => kernels.combine(&[operand(a)], bias, outputs),
                        [a, b] => kernels.combine(&[operand(a), operand(b)], bias, outputs),
                        [a, b, c] => kernels.combine(&[a, b, c].map(operand), bias, outputs),
                        more => {
                            let operands: Vec<_> = more.iter().map(operand).collect();
                            kernels.combine(&operands, bias, outputs);
                        }
                    }
                });
            }
            Step::Product { a, b, outputs } => {
                self.with_outputs(outputs, buffers, |buffers, outputs| {
                    let operand = |map: MapId| {
                        let (codes, layout) = (self.codes(buffers, map), maps[map].layout);
                        (Source { codes, layout }, i32::from(maps[map].fill()))
                    };
                    kernels.product(operand(*a), operand(*b), outputs);
                });
            }
            Step::Average { input, window, outputs } => {
                self.with_outputs(outputs, buffers, |buffers, outputs| {
                    let (codes, layout) = (self.codes(buffers, *input), maps[*input].layout);
                    let zero = i32::from(maps[*input].fill());
                    kernels.average(Source { codes, layout }, zero, window, outputs);
                });
            }
            Step::MaxPool { input, window, output } => {
                self.with_output(*output, buffers, |buffers, output, layout| {
                    let (codes, from) = (self.codes(buffers, *input), maps[*input].layout);
                    kernels.max_pool(Source { codes, layout: from }, window, output, layout);
                });
            }
            Step::Lookup { input, table, output } => {
                self.with_output(*output, buffers, |buffers, output, layout| {
                    let (codes, from) = (self.codes(buffers, *input), maps[*input].layout);
                    kernels.lookup(Source { codes, layout: from }, table, output, layout);
                });
            }
            Step::Gather { sources, output } => {
                for ((source, _), runs) in sources.iter().zip(moves) {
                    self.with_output(*output, buffers, |buffers, output, _| {
                        kernels.gather(self.codes(buffers, *source), runs, output);
                    });
                }
            }
        }
    }

    /// Lends out the outputs' buffers beside all others.
    fn with_outputs(
        &self,
        outputs: &[Requantization],
        buffers: &mut [Buffer],
        run: impl FnOnce(&[Buffer], &mut [Output<'_>]),
    ) {
        // The usual numbers of versions need no allocation.
        match outputs {
            [a] => self.lend([a], buffers, run),
            [a, b] => self.lend([a, b], buffers, run),
            [a, b, c] => self.lend([a, b, c], buffers, run),
            _ => {
                let mut taken: Vec<Buffer> =
                    outputs.iter().map(|o| self.take(buffers, o.map)).collect();
                let mut lent: Vec<Output<'_>> =
                    outputs.iter().zip(&mut taken).map(|(o, b)| self.output(o, b)).collect();
                run(buffers, &mut lent);
                for (output, buffer) in outputs.iter().zip(taken) {
                    buffers[self.arena.slot_of[output.map]] = buffer;
                }
            }
        }
    }

    fn lend<const N: usize>(
        &self,
        outputs: [&Requantization; N],
        buffers: &mut [Buffer],
        run: impl FnOnce(&[Buffer], &mut [Output<'_>]),
    ) {
        let mut taken = outputs.map(|output| self.take(buffers, output.map));
        let mut lent = taken.each_mut().map(Some);
        run(
            buffers,
            &mut std::array::from_fn::<_, N, _>(|i| {
                self.output(outputs[i], lent[i].take().expect("each is lent once"))
            }),
        );
        for (output, buffer) in outputs.into_iter().zip(taken) {
            buffers[self.arena.slot_of[output.map]] = buffer;
        }
    }

    fn output<'b>(&'b self, output: &'b Requantization, buffer: &'b mut Buffer) -> Output<'b> {
        Output {
            codes: buffer.codes_mut(self.len(output.map)),
            layout: self.model.maps[output.map].layout,
            multipliers: &output.multipliers,
            zero: output.zero,
            low: output.low,
            high: output.high,
        }
    }

    fn with_output(
        &self,
        output: MapId,
        buffers: &mut [Buffer],
        run: impl FnOnce(&[Buffer], CodesMut<'_>, &MapLayout),
    ) {
        let mut taken = self.take(buffers, output);
        run(buffers, taken.codes_mut(self.len(output)), &self.model.maps[output].layout);
        buffers[self.arena.slot_of[output]] = taken;
    }

    /// Elements of a map.
    fn len(&self, map: MapId) -> usize {
        self.model.maps[map].layout.len()
    }

    fn codes<'b>(&self, buffers: &'b [Buffer], map: MapId) -> Codes<'b> {
        buffers[self.arena.slot_of[map]].codes(self.len(map))
    }

    fn take(&self, buffers: &mut [Buffer], map: MapId) -> Buffer {
        std::mem::replace(&mut buffers[self.arena.slot_of[map]], Buffer::U8(Vec::new()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes codes in (y, x, channel) order into a map's memory.
fn store(buffer: &mut Buffer, map: &super::model::Map, code: impl Fn(usize) -> u16) {
    let layout = &map.layout;
    for y in 0..layout.height {
        for x in 0..layout.width {
            let (at, k) = (layout.offset(y, x), (y * layout.width + x) * layout.channels);
            for c in 0..layout.channels {
                match buffer {
                    Buffer::U8(codes) => codes[at + c] = code(k + c) as u8,
                    Buffer::U16(codes) => codes[at + c] = code(k + c),
                    Buffer::I32(_) => unreachable!("scores are computed"),
                }
            }
        }
    }
}
