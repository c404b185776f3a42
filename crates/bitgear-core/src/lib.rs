//! What ships to a device: fixed point, integer kernels, the score margin and the decision on it.
#![cfg_attr(not(feature = "std"), no_std)]
