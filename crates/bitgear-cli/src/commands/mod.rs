//! One module for each command.

pub(crate) mod accelerators;
pub(crate) mod bench;
pub(crate) mod certify;
pub(crate) mod characterize;
pub(crate) mod evaluate;
pub(crate) mod infer;
pub(crate) mod inspect;
pub(crate) mod monitor;
mod plain;
pub(crate) mod report;
mod sensitivity;
