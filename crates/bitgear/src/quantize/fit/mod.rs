//! Fitting the integers of one layer, given data.

#![allow(clippy::inline_always, reason = "rows are fitted by code that is compiled for vectors")]

mod grid;
mod lattice;
mod layer;
mod moments;

pub(crate) use grid::Grid;
pub(crate) use layer::{LayerFit, MOST_COLUMNS, Request};
pub(crate) use moments::{LayerMoments, Unfolded, is_held_out};
