//! Networks in integers: what they are, and running them.

mod arena;
mod engine;
#[cfg(test)]
pub(crate) mod fixture;
mod island;
mod layer;
mod model;
mod policy;
mod prefix;
mod scale;
mod validate;

pub use engine::{Engine, KernelUse, Workspace};
pub use island::{Island, IslandStep, MatMulStep};
pub use model::{Format, IntegerModel, MacStep, Map, MapId, NOWHERE, Requantization, Step};
pub use policy::{Decision, Memory, RunningStage, decide, decide_into};
pub use prefix::{Handoff, InvalidPrefix, Leg, relay, shared_layers};
pub use scale::ActivationScale;
pub use validate::InvalidModel;
