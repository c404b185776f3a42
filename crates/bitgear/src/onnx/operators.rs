//! Which operators there are.

/// The ONNX operators that import knows, and how each group of them runs. Which attributes and shapes are
/// possible is for the import of each node to say.
pub const OPERATORS: [(&[&str], &str); 15] = [
    (&["Conv"], "integers; one or two spatial axes, any group, stride and dilation"),
    (&["Gemm"], "integers; constant weights"),
    (&["MatMul"], "integers; constant weights, or two computed operands as in attention"),
    (&["BatchNormalization"], "folded into the layer before it, else integers"),
    (&["Add", "Sub"], "integers; fused into the layer before where it can be"),
    (&["Mul", "Div"], "integers; by a constant, or a product of two tensors"),
    (&["Relu", "Clip"], "a clamp of the layer before"),
    (
        &["LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Erf"],
        "a table of codes",
    ),
    (&["MaxPool", "GlobalMaxPool"], "codes, exact"),
    (&["AveragePool", "GlobalAveragePool", "ReduceMean"], "integers, rounded once"),
    (
        &["LayerNormalization", "Softmax"],
        "float islands: codes in, codes out, the same on every CPU",
    ),
    (
        &[
            "Flatten",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Transpose",
            "Slice",
            "Pad",
            "Concat",
            "Split",
            "Gather",
        ],
        "codes are moved",
    ),
    (&["Dropout", "Identity", "Cast"], "nothing"),
    (&["Shape", "Constant", "ConstantOfShape"], "computed at import"),
    (&["Equal", "Where", "Expand"], "computed at import, of constants"),
];

pub(super) fn is_supported(operator: &str) -> bool {
    OPERATORS.iter().any(|(names, _)| names.contains(&operator))
}
