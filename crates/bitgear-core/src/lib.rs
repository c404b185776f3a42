//! What ships to a device: fixed point, integer kernels, the score margin and the decision on it.
//!
//! ```
//! use bitgear_core::{margin::answer, policy::Gate};
//!
//! let low = answer(&[120, 900, 850]); // scores of the low stage
//! assert_eq!((low.class, low.margin), (1, 50));
//! assert!(!Gate::margin(80).accepts(low, None)); // too close: run the next stage
//! ```
//!
//! The crate allocates nothing, reads and writes nothing, and needs no standard library; the
//! feature `std` adds the detection of CPU features and with it the SIMD kernels.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

pub mod bits;
pub mod fixed;
pub mod kernels;
pub mod margin;
pub mod policy;
