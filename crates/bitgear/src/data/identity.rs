//! What makes two data sets the same: kind, shape, samples and labels, not how they are stored. Samples
//! are hashed one by one, so that many machines can hash the samples that they have.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Samples;
use crate::hash::hex;

impl Samples {
    /// NumPy's name of the type that values are stored in.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::U8(_) => "u1",
            Self::I8(_) => "i1",
            Self::I16(_) => "i2",
            Self::F32(_) => "f4",
        }
    }
}

/// SHA-256 of each sample's little-endian bytes.
///
/// # Panics
///
/// When the samples don't have this shape.
pub fn sample_hashes(sample_shape: &[usize], samples: &Samples) -> Vec<[u8; 32]> {
    let len: usize = sample_shape.iter().product();
    match samples {
        Samples::U8(values) => hashes(values, len, |v| [*v]),
        Samples::I8(values) => hashes(values, len, |v| v.to_le_bytes()),
        Samples::I16(values) => hashes(values, len, |v| v.to_le_bytes()),
        Samples::F32(values) => hashes(values, len, |v| v.to_le_bytes()),
    }
}

fn hashes<T: Sync, const N: usize>(
    values: &[T],
    len: usize,
    bytes: impl Fn(&T) -> [u8; N] + Sync,
) -> Vec<[u8; 32]> {
    let one = |sample: &[T]| {
        let bytes: Vec<u8> = sample.iter().flat_map(&bytes).collect();
        Sha256::digest(bytes).into()
    };
    values.par_chunks_exact(len).map(one).collect()
}

/// SHA-256 of a data set of shape (N, sample shape), in hexadecimal digits: of its
/// [kind](Samples::kind), its shape, its samples' [hashes](sample_hashes) in order, and its labels.
pub fn content_hash(
    shape: &[usize],
    kind: &str,
    sample_hashes: &[[u8; 32]],
    labels: Option<&[u32]>,
) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{kind} {shape:?} {}\n", labels.is_some()));
    digest.update(sample_hashes.as_flattened());
    for label in labels.into_iter().flatten() {
        digest.update(label.to_le_bytes());
    }
    hex(&digest.finalize())
}
