//! What an inference costs on an accelerator. Knows no tensors: workloads are counts.

mod model;
mod profile;
mod schema;
mod sharing;

pub use model::{
    Energy, EnergyError, LayerCost, LayerWork, StageCost, Widths, Workload, policy_cost,
    stage_costs,
};
pub use profile::{AcceleratorProfile, NotCounted, ProfileError, SHIPPED};
pub use schema::{
    Accelerator, Evidence, MacTable, Matching, Memory, Mode, Packing, Quantity, Scope, Style,
    SupplyPoint, Transition, TransitionKind, VoltageTransition,
};
pub use sharing::{Live, StagePoint, Storage};
