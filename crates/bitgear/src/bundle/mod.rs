//! `model.bitgear`: everything it takes to run a policy, in one safetensors file. Weights are bit
//! strings of exactly their width; all else is one JSON text in the file's metadata.

mod pack;
pub(crate) mod weights;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use bitgear_core::kernels::Kernels;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde::{Deserialize, Serialize};

use crate::data::{DataError, Dataset, Preprocess};
use crate::energy::Storage;
use crate::execute::{
    Decision, Engine, Handoff, IntegerModel, Leg, Memory, RunningStage, decide_into, relay,
};
use crate::policy::{EnergyUj, PolicyFile, Tables};
use crate::tensor::Tensor;
use crate::trace::{Splits, View, weights as sample_weights};

pub use weights::weight_bytes;

/// A policy with the networks it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Version of this format: 1.
    pub schema_version: u32,
    /// Names of the classes are not known; their number is.
    pub classes: usize,
    /// From stored values to the networks' input.
    pub preprocess: Preprocess,
    /// The policy.
    pub policy: PolicyFile,
    /// Further policies, for [`Bundle::select`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<NamedPolicy>,
    /// Which samples served what.
    pub splits: Splits,
    /// How weights are stored.
    pub storage: Storage,
    /// One network for each stage of the policy, the last resort included; then those of points that
    /// only other policies run.
    pub models: Vec<IntegerModel>,
}

/// A policy that can take the place of a bundle's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedPolicy {
    /// Its name.
    pub name: String,
    /// The policy.
    pub policy: PolicyFile,
}

/// There is no such policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bundle has no policy `{name}`: expected {expected}")]
pub struct UnknownPolicy {
    name: String,
    expected: String,
}

/// What the bundle's own policy is called beside others.
const MAIN: &str = "main";

/// The bundle can't be written, read or trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The system refused.
    #[error("cannot access `{path}`: {reason}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The file is no bundle.
    #[error("`{path}` is no bundle: {reason}")]
    Invalid {
        /// The file.
        path: String,
        /// What was expected.
        reason: String,
    },
}

impl BundleError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Invalid { .. } => {
                Some("a bundle is what `bitgear characterize` writes as `model.bitgear`")
            }
            Self::Io { .. } => None,
        }
    }
}

/// What a policy did on labelled data, whose classes count as in the bundle's class mix if it has one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Number of samples.
    pub samples: usize,
    /// Share of right answers.
    pub accuracy: f64,
    /// Share of all samples that each stage handed on.
    pub escalation_rates: Vec<f64>,
    /// Mean energy of an inference.
    pub energy_uj: EnergyUj,
}

const METADATA: &str = "bitgear";
const BATCH: usize = 256;

impl Bundle {
    /// The file's bytes; equal bundles give equal bytes.
    ///
    /// # Errors
    ///
    /// When the bundle contradicts itself, or its networks don't share their weights as they should.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        self.check()?;
        let weights = weights::pack(&self.models, self.storage)?;
        let views = weights.iter().map(|(name, bytes)| {
            (name, TensorView::new(Dtype::U8, vec![bytes.len()], bytes).expect("one byte a value"))
        });
        let text = serde_json::to_string(self).expect("a bundle has no maps with other keys");
        let metadata = HashMap::from([(METADATA.to_owned(), text)]);
        Ok(serialize(views, Some(metadata)).expect("names are unique and sizes fit"))
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    ///
    /// When it can't be written, contradicts itself, or its networks don't share their weights as they
    /// should.
    pub fn write(&self, path: &Path) -> Result<(), BundleError> {
        let bytes = self
            .to_bytes()
            .map_err(|reason| BundleError::Invalid { path: path.display().to_string(), reason })?;
        crate::files::write_atomically(path, &bytes)
            .map_err(|reason| BundleError::Io { path: path.display().to_string(), reason })
    }

    /// Reads and checks a bundle.
    ///
    /// # Errors
    ///
    /// When it can't be read, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let name = || path.display().to_string();
        let bytes =
            std::fs::read(path).map_err(|reason| BundleError::Io { path: name(), reason })?;
        Self::from_bytes(&bytes).map_err(|reason| BundleError::Invalid { path: name(), reason })
    }

    /// Reads and checks the bytes of a file.
    ///
    /// # Errors
    ///
    /// When they are no bundle, or it contradicts itself.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let metadata = header.metadata().as_ref().and_then(|m| m.get(METADATA));
        let text = metadata.ok_or_else(|| format!("metadata `{METADATA}` is missing"))?;
        let mut bundle: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if bundle.schema_version != 1 {
            return Err(format!("`schema_version` must be 1, got {}", bundle.schema_version));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        weights::unpack(&mut bundle.models, bundle.storage, &tensors)?;
        bundle.check()?;
        Ok(bundle)
    }

    fn check(&self) -> Result<(), String> {
        self.policy.check().map_err(|e| e.to_string())?;
        let stages = self.policy.points().count();
        if stages > self.models.len()
            || (stages < self.models.len() && self.others.is_empty())
            || !self.policy.points().eq(self.running().iter().map(|m| m.point.as_str()))
        {
            return Err("networks and stages differ".to_owned());
        }
        for other in &self.others {
            other.policy.check().map_err(|e| e.to_string())?;
            if self.storage == Storage::Nested {
                return Err("several policies need independent storage, got nested".to_owned());
            }
            let single = self.having(&other.policy);
            single.and_then(|b| b.check()).map_err(|e| format!("policy `{}`: {e}", other.name))?;
        }
        if let Some(mix) = self.splits.class_mix.as_ref()
            && mix.shares().len() != self.classes
        {
            return Err(format!(
                "expected a class mix of {} classes, got {}",
                self.classes,
                mix.shares().len()
            ));
        }
        let first = self.models.first().ok_or("there is no network")?;
        let widest = weights::widest(&self.models);
        for mac in self.models.iter().flat_map(|m| m.mac_steps().enumerate()) {
            let (layer, mac) = mac;
            let leading = self.storage == Storage::Nested && mac.weight_bits < widest[layer];
            // Of 2 bits, those of one network alone may be odd too.
            let free = self.storage == Storage::Independent && mac.weight_bits == 2;
            if mac.odd != leading && !free {
                let kind = if leading { "odd" } else { "two's complement" };
                return Err(format!(
                    "layer `{}`: expected {kind} codes at {} of {} bits",
                    mac.name, mac.weight_bits, widest[layer]
                ));
            }
        }
        for model in &self.models {
            model.validate().map_err(|e| e.to_string())?;
            if model.classes() != self.classes || model.input_shape != first.input_shape {
                return Err("networks differ in input or classes".to_owned());
            }
        }
        for leg in self.legs()? {
            leg.model.validate().map_err(|e| e.to_string())?;
        }
        for (stage, model) in self.policy.stages.iter().zip(&self.models) {
            if let Some(Tables { predicted, runner_up, .. }) = &stage.tables
                && [predicted, runner_up].iter().any(|table| table.len() != self.classes)
            {
                return Err(format!(
                    "stage `{}`: expected gate tables of {} classes, got {} and {}",
                    stage.point,
                    self.classes,
                    predicted.len(),
                    runner_up.len()
                ));
            }
            if stage.score_scale != model.score_scale() {
                return Err(format!(
                    "stage `{}`: score scale differs from its network's",
                    stage.point
                ));
            }
        }
        self.preprocess.check(&first.input_shape).map_err(|e| e.to_string())
    }

    /// The networks of the policy's stages.
    fn running(&self) -> &[IntegerModel] {
        &self.models[..self.models.len().min(self.policy.points().count())]
    }

    /// The bundle with another of its policies, by name, in place of its own, which is `main`.
    ///
    /// # Errors
    ///
    /// When it has none of that name.
    pub fn select(self, name: &str) -> Result<Self, UnknownPolicy> {
        if name == MAIN {
            return Ok(self);
        }
        match self.others.iter().find(|other| other.name == name) {
            Some(other) => Ok(self.having(&other.policy).expect("bundles are checked when read")),
            None => Err(UnknownPolicy {
                name: name.to_owned(),
                expected: [MAIN]
                    .into_iter()
                    .chain(self.others.iter().map(|other| other.name.as_str()))
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// With one policy and its networks only.
    fn having(&self, policy: &PolicyFile) -> Result<Self, String> {
        let network = |point: &str| {
            let found = self.models.iter().find(|model| model.point == point);
            found.cloned().ok_or_else(|| format!("there is no network of point `{point}`"))
        };
        Ok(Self {
            schema_version: self.schema_version,
            classes: self.classes,
            preprocess: self.preprocess.clone(),
            policy: policy.clone(),
            others: Vec::new(),
            splits: self.splits.clone(),
            storage: self.storage,
            models: policy.points().map(network).collect::<Result<_, _>>()?,
        })
    }

    /// Shape of one input sample.
    pub fn input_shape(&self) -> &[usize] {
        &self.models[0].input_shape
    }

    /// What each stage runs.
    fn legs(&self) -> Result<Vec<Leg<'_>>, String> {
        let shared = self.policy.shared_layers();
        let mut legs = relay(self.running(), &shared).map_err(|e| e.to_string())?;
        // Whole networks start anew where another view is shown. Those that add their scores to others keep
        // no maps, since they would do so by scores that are not yet added.
        let seen: Vec<(View, Option<f32>)> = self.policy.views_and_factors().collect();
        for (i, pair) in seen.windows(2).enumerate() {
            let [(view, sum), (next, _)] = pair else { continue };
            if shared[i + 1] == 0 && (view != next || sum.is_some()) {
                legs[i + 1].handoff = None;
            }
        }
        Ok(legs)
    }

    /// Packs the networks for this CPU.
    ///
    /// # Panics
    ///
    /// When the networks differ in the layers that the policy says they share.
    pub fn runner(&self, kernels: Kernels) -> Runner<'_> {
        let legs = self.legs().expect("bundles are checked when read and written");
        let (engines, handoffs) = Leg::engines(legs, kernels);
        Runner { bundle: Cow::Borrowed(self), engines, handoffs }
    }

    /// The same in as little memory as possible: of the weights, only what kernels read is kept, and the
    /// bundle of [`Runner::bundle`] has none.
    ///
    /// # Panics
    ///
    /// As [`Self::runner`].
    pub fn run_only(mut self, kernels: Kernels) -> Runner<'static> {
        let legs = self.legs().expect("bundles are checked when read and written");
        let parts: Vec<(Option<IntegerModel>, Option<Handoff>)> = legs
            .into_iter()
            .map(|leg| match leg.model {
                Cow::Borrowed(_) => (None, leg.handoff),
                Cow::Owned(model) => (Some(model), leg.handoff),
            })
            .collect();
        // A stage that runs a whole network takes that one's weights with it.
        let take = |((model, handoff), whole): ((Option<IntegerModel>, _), &mut IntegerModel)| {
            let taken = whole.take_weights();
            Leg { model: Cow::Owned(model.unwrap_or(taken)), handoff }
        };
        let legs = parts.into_iter().zip(&mut self.models).map(take).collect();
        self.models.iter_mut().for_each(|model| drop(model.take_weights()));
        let (engines, handoffs) = Leg::engines(legs, kernels);
        Runner { bundle: Cow::Owned(self), engines, handoffs }
    }

    /// The same, keeping the bundle.
    ///
    /// # Panics
    ///
    /// As [`Self::runner`].
    pub fn into_runner(self, kernels: Kernels) -> Runner<'static> {
        let legs = self.legs().expect("bundles are checked when read and written").into_iter();
        let own =
            |leg: Leg<'_>| Leg { model: Cow::Owned(leg.model.into_owned()), handoff: leg.handoff };
        let (engines, handoffs) = Leg::engines(legs.map(own).collect(), kernels);
        Runner { bundle: Cow::Owned(self), engines, handoffs }
    }
}

/// A bundle that is ready to run.
pub struct Runner<'b> {
    bundle: Cow<'b, Bundle>,
    engines: Vec<Engine<'b>>,
    /// How each stage goes on from the one before.
    handoffs: Vec<Option<Handoff>>,
}

impl Runner<'_> {
    /// What runs.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Answers to a batch (N, sample shape) of preprocessed samples.
    pub fn decide(&self, batch: &Tensor) -> Vec<Decision> {
        let mut decisions = Vec::new();
        self.decide_into(batch, &mut Memory::default(), &mut decisions);
        decisions
    }

    /// The same into memory that was used before, see [`decide_into`].
    pub fn decide_into(&self, batch: &Tensor, memory: &mut Memory, decisions: &mut Vec<Decision>) {
        let gates = self.bundle.policy.gates().map(Some);
        let stages = self
            .engines
            .iter()
            .zip(&self.handoffs)
            .zip(gates.chain([None]))
            .zip(self.bundle.policy.views_and_factors())
            .map(|(((engine, handoff), gate), (view, sum))| RunningStage {
                engine,
                gate,
                handoff: handoff.as_ref(),
                view,
                sum,
            });
        decide_into(stages, batch, memory, decisions);
    }

    /// Energy of an inference that stage `stage` answered: of all stages up to it.
    pub fn energy_uj(&self, stage: usize) -> EnergyUj {
        let ran = &self.bundle.policy.stage_energy_uj[..=stage];
        let sum = |part: fn(&EnergyUj) -> f64| ran.iter().map(part).sum();
        EnergyUj { total: sum(|e| e.total), chip: sum(|e| e.chip), offchip: sum(|e| e.offchip) }
    }

    /// Runs the policy on the samples at `indices` of labelled data. `progress` is told the number
    /// of samples done.
    ///
    /// # Errors
    ///
    /// When the data does not fit the bundle, or lacks a class of its class mix.
    pub fn evaluate(
        &self,
        data: &Dataset,
        indices: &[usize],
        progress: impl Fn(usize),
    ) -> Result<Evaluation, DataError> {
        data.check(self.bundle.input_shape(), &self.bundle.preprocess)?;
        let labels = data.labels_of(self.bundle.classes)?;
        let class_mix = self.bundle.splits.class_mix.as_ref();
        let labels_of = || indices.iter().map(|&index| labels[index]);
        if let Some(class) = class_mix.and_then(|mix| mix.missing(labels_of())) {
            return Err(DataError::no_samples_of(data, class));
        }
        let weights = sample_weights(class_mix, labels_of());
        let mut right = 0;
        let mut handed_on = vec![0; self.bundle.policy.stages.len()];
        for (chunk, weights) in indices.chunks(BATCH).zip(weights.chunks(BATCH)) {
            let decisions = self.decide(&data.batch(chunk, &self.bundle.preprocess));
            for ((&index, &weight), decision) in chunk.iter().zip(weights).zip(&decisions) {
                right += weight * i64::from(decision.answer.class == labels[index] as usize);
                for sum in &mut handed_on[..decision.stage] {
                    *sum += weight;
                }
            }
            progress(chunk.len());
        }
        let n = weights.iter().sum::<i64>().max(1) as f64;
        let rates: Vec<f64> = handed_on.iter().map(|&sum| sum as f64 / n).collect();
        let stages = &self.bundle.policy.stage_energy_uj;
        let mean = |part: fn(&EnergyUj) -> f64| {
            let rest = stages[1..].iter().zip(&rates).map(|(stage, rate)| part(stage) * rate);
            rest.fold(part(&stages[0]), |sum, energy| sum + energy)
        };
        let (chip, offchip) = (mean(|e| e.chip), mean(|e| e.offchip));
        Ok(Evaluation {
            samples: indices.len(),
            accuracy: right as f64 / n,
            escalation_rates: rates,
            energy_uj: EnergyUj { total: chip + offchip, chip, offchip },
        })
    }
}

#[cfg(test)]
mod tests;
