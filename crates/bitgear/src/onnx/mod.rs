//! Reading trained classifiers from ONNX files. The only place that knows ONNX.

mod constant;
mod export;
mod import;
mod operators;
pub mod proto;

pub use export::{ExportError, export_qdq};
pub use operators::OPERATORS;

use std::fmt;
use std::path::Path;

use prost::Message;

use self::proto::ModelProto;
use crate::graph::Graph;

/// Why a model can't be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file can't be read.
    #[error("cannot read `{path}`: {reason}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("not an ONNX model: {0}")]
    Malformed(String),
    /// Operators, attributes or values that bitgear does not support: all of them.
    #[error("cannot import the model: {} problem{}{}", .0.len(), if .0.len() == 1 { "" } else { "s" }, Listing(.0))]
    Unsupported(Vec<Problem>),
}

/// One node that can't be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// What is wrong.
    pub reason: String,
}

struct Listing<'a>(&'a [Problem]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|p| write!(f, "\n  node `{}` ({}): {}", p.node, p.operator, p.reason))
    }
}

impl ImportError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported(problems)
                if problems.iter().any(|p| p.reason == import::UNSUPPORTED_OPERATOR) =>
            {
                Some("bitgear imports convolutional and transformer classifiers of opset 11 and later; export for inference, without training nodes and post-processing".to_owned())
            }
            _ => None,
        }
    }
}

/// Imports the model in a file; its external data is looked for beside it.
///
/// # Errors
///
/// When the file can't be read, is no ONNX model, or holds what bitgear does not support.
pub fn import_file(path: &Path) -> Result<Graph, ImportError> {
    let bytes = std::fs::read(path)
        .map_err(|reason| ImportError::Read { path: path.display().to_string(), reason })?;
    let folder = path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    import(&bytes, folder)
}

/// Imports a model from memory. `folder` is where external data may lie.
///
/// # Errors
///
/// When the bytes are no ONNX model, or hold what bitgear does not support: then all problems.
pub fn import(bytes: &[u8], folder: Option<&Path>) -> Result<Graph, ImportError> {
    let model = ModelProto::decode(bytes).map_err(|e| ImportError::Malformed(e.to_string()))?;
    import::import(&model, folder)
}

#[cfg(test)]
mod tests;
