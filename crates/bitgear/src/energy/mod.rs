//! What an inference costs on an accelerator. Knows no tensors: workloads are counts.

mod model;
mod profile;
mod schema;

pub use model::{
    Energy, EnergyError, LayerCost, LayerWork, Live, StageCost, StagePoint, Storage, Widths,
    Workload, policy_cost, stage_costs,
};
pub use profile::{AcceleratorProfile, NotCounted, ProfileError, SHIPPED};
pub use schema::{
    Accelerator, CodeBook, Evidence, MacTable, Matching, Memory, Mode, Packing, Quantity,
    Quantization, Scope, Style, SupplyPoint, Transition, TransitionKind, VoltageTransition,
};
