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

use self::proto::{ModelProto, TensorProto};
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
            Self::Malformed(_) => Some("expected a file that `onnx.checker.check_model` takes; one that was cut short, or a Git LFS pointer in its place, is none".to_owned()),
            _ => None,
        }
    }
}

/// The bytes of the model in a file, with external data, which is looked for beside it, taken in: all that
/// the model is. Those of a file that holds its own weights are as they are.
///
/// # Errors
///
/// When a file can't be read. Bytes that are no model are left to [`import`].
pub fn read_file(path: &Path) -> Result<Vec<u8>, ImportError> {
    let bytes = std::fs::read(path)
        .map_err(|reason| ImportError::Read { path: path.display().to_string(), reason })?;
    let Ok(mut model) = ModelProto::decode(&bytes[..]) else { return Ok(bytes) };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut problems = Vec::new();
    let mut outside = false;
    let mut take_in = |tensor: &mut TensorProto, node: &str, operator: &str| {
        outside |= constant::is_external(tensor);
        if let Err(reason) = constant::take_in(tensor, folder) {
            let (node, operator) = (node.to_owned(), operator.to_owned());
            problems.push(Problem { node, operator, reason });
        }
    };
    if let Some(graph) = &mut model.graph {
        for tensor in &mut graph.initializer {
            let name = tensor.name.clone();
            take_in(tensor, &name, "initializer");
        }
        for node in &mut graph.node {
            for tensor in node.attribute.iter_mut().filter_map(|attribute| attribute.t.as_mut()) {
                take_in(tensor, &node.name, &node.op_type);
            }
        }
    }
    if !problems.is_empty() {
        return Err(ImportError::Unsupported(problems));
    }
    Ok(if outside { model.encode_to_vec() } else { bytes })
}

/// Imports the model in a file; its external data is looked for beside it.
///
/// # Errors
///
/// When the file can't be read, is no ONNX model, or holds what bitgear does not support.
pub fn import_file(path: &Path) -> Result<Graph, ImportError> {
    import(&read_file(path)?)
}

/// Imports a model from memory, which must hold its own weights: see [`read_file`].
///
/// # Errors
///
/// When the bytes are no ONNX model, or hold what bitgear does not support: then all problems.
pub fn import(bytes: &[u8]) -> Result<Graph, ImportError> {
    let model = ModelProto::decode(bytes).map_err(|e| ImportError::Malformed(e.to_string()))?;
    import::import(&model)
}

#[cfg(test)]
mod tests;
