//! What an inference costs on an accelerator. Knows no tensors: workloads are counts.

mod interval;
mod model;
mod profile;
mod provenance;
mod schema;
mod workload;

pub use interval::{Interval, interval, mean_energy};
pub use model::{
    Energy, EnergyError, LayerCost, StageCost, StagePoint, Storage, policy_cost, stage_costs,
};
pub use profile::{AcceleratorProfile, NotCounted, ProfileError, SHIPPED};
pub use provenance::Grade;
pub use schema::{
    Accelerator, CodeBook, Evidence, Holds, MacTable, Matching, Memory, Mode, Packing, Quantity,
    Quantization, Scope, Style, SupplyPoint, Transition, TransitionKind, VoltageTransition,
};
pub use workload::{InvalidWorkload, LayerWork, Live, PublishedNetwork, Widths, Workload};
