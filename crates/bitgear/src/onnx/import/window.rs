//! Convolutions, pooling and means: whatever moves a window over an image.

use super::{Current, Importer, Value};
use crate::graph::{Conv, Op, Pool, TensorId};
use crate::tensor::Tensor;

/// Window geometry as the attributes give it, for one or two spatial axes.
struct Window {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    /// Before, then after.
    pads: [Vec<usize>; 2],
}

impl Importer {
    pub(super) fn conv(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let input = node.sample(0)?;
        let weight = node.required(1)?.clone();
        let rank = self.spatial_rank(input)?;
        if weight.shape.len() != rank + 2 {
            return Err(format!(
                "weights must have rank {}, got shape {:?}",
                rank + 2,
                weight.shape
            ));
        }
        let outputs = weight.shape[0];
        let bias = match node.known(2)? {
            Some(bias) => bias.to_floats()?,
            None => vec![0.0; outputs],
        };
        let kernel = node.attributes.sizes("kernel_shape", rank, 0)?;
        if node.attributes.has("kernel_shape") && kernel != weight.shape[2..] {
            return Err(format!(
                "attribute `kernel_shape` {kernel:?} differs from weights {:?}",
                weight.shape
            ));
        }
        let window = self.window(node, input, weight.shape[2..].to_vec(), false)?;
        let groups = usize::try_from(node.attributes.int("group", 1)).map_err(|e| e.to_string())?;
        let [kh, kw] = plane(&window.kernel, 1);
        let conv = Conv {
            weight: Tensor::new(vec![outputs, weight.shape[1], kh, kw], weight.to_floats()?),
            bias,
            strides: plane(&window.strides, 1),
            pads: window.flat_pads(),
            dilations: plane(&window.dilations, 1),
            groups,
        };
        self.over_image(node, input, Op::Conv(conv))
    }

    pub(super) fn pool(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let input = node.sample(0)?;
        if node.proto.output.len() > 1 && node.proto.output[1..].iter().any(|o| !o.is_empty()) {
            return Err("indices of the maximum are not supported".to_owned());
        }
        let rank = self.spatial_rank(input)?;
        let operator = node.proto.op_type.as_str();
        if operator == "GlobalMaxPool" {
            let kernel = plane(&self.shape(input)[1..], 1);
            let pool = Pool { kernel, strides: [1, 1], pads: [0; 4] };
            let pooled = self.over_image(node, input, Op::MaxPool(pool))?;
            return Ok(pooled);
        }
        let kernel = node.attributes.sizes("kernel_shape", rank, 0)?;
        let ceil = node.attributes.int("ceil_mode", 0) != 0;
        let window = self.window(node, input, kernel, ceil)?;
        if window.dilations.iter().any(|&d| d != 1) {
            return Err("dilated pooling is not supported".to_owned());
        }
        let pool = Pool {
            kernel: plane(&window.kernel, 1),
            strides: plane(&window.strides, 1),
            pads: window.flat_pads(),
        };
        if operator == "MaxPool" {
            node.attributes.only("storage_order", 0)?;
            return self.over_image(node, input, Op::MaxPool(pool));
        }
        let count_padding = node.attributes.int("count_include_pad", 0) != 0;
        if count_padding && ceil {
            return Err("`count_include_pad` together with `ceil_mode` is not supported".to_owned());
        }
        self.over_image(node, input, Op::AveragePool { pool, count_padding })
    }

    pub(super) fn mean(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let input = node.sample(0)?;
        let rank = self.shape(input).len();
        let (axes, keep) = if node.proto.op_type == "GlobalAveragePool" {
            ((1..rank).collect(), true)
        } else {
            let keep = node.attributes.int("keepdims", 1) != 0;
            node.attributes.only("noop_with_empty_axes", 0)?;
            let given = match (node.known(1)?, node.attributes.ints("axes")) {
                (Some(axes), _) => axes.to_ints()?,
                (None, Some(axes)) => axes.to_vec(),
                (None, None) => return Err("a mean over all axes mixes samples".to_owned()),
            };
            (sample_axes(&given, rank)?, keep)
        };
        let output = self.push(&node.name, Op::Mean { axes, keep }, vec![input])?;
        Ok(Value::Sample(output))
    }

    /// Number of spatial axes of a (C, H, W) or (C, L) tensor.
    fn spatial_rank(&self, input: TensorId) -> Result<usize, String> {
        match self.shape(input).len() {
            rank @ (2 | 3) => Ok(rank - 1),
            _ => Err(format!(
                "expected a sample of shape (C, H, W) or (C, L), got {:?}",
                self.shape(input)
            )),
        }
    }

    /// Applies an operator of images; a sequence (C, L) becomes an image of height 1 and back.
    fn over_image(&mut self, node: &Current<'_>, input: TensorId, op: Op) -> Result<Value, String> {
        let &[channels, length] = self.shape(input) else {
            return self.push(&node.name, op, vec![input]).map(Value::Sample);
        };
        let image =
            self.reshape(&format!("{}/image", node.name), input, vec![channels, 1, length])?;
        let result = self.push(&node.name, op, vec![image])?;
        let &[channels, _, length] = self.shape(result) else { unreachable!("an image stays one") };
        let flat =
            self.reshape(&format!("{}/sequence", node.name), result, vec![channels, length])?;
        Ok(Value::Sample(flat))
    }

    fn window(
        &self,
        node: &Current<'_>,
        input: TensorId,
        kernel: Vec<usize>,
        ceil: bool,
    ) -> Result<Window, String> {
        let attributes = &node.attributes;
        let rank = kernel.len();
        let strides = attributes.sizes("strides", rank, 1)?;
        let dilations = attributes.sizes("dilations", rank, 1)?;
        let given = attributes.sizes("pads", 2 * rank, 0)?;
        let mut pads = [given[..rank].to_vec(), given[rank..].to_vec()];
        let auto = attributes.text("auto_pad", "NOTSET");
        for axis in 0..rank {
            let size = self.shape(input)[axis + 1];
            let (kernel, stride, dilation) = (kernel[axis], strides[axis], dilations[axis]);
            if kernel == 0 || stride == 0 || dilation == 0 {
                return Err("window, strides and dilations must be positive".to_owned());
            }
            let reach = (kernel - 1) * dilation + 1;
            match auto.as_str() {
                "NOTSET" => {}
                "VALID" => (pads[0][axis], pads[1][axis]) = (0, 0),
                "SAME_UPPER" | "SAME_LOWER" => {
                    let covered = (size.div_ceil(stride) - 1) * stride + reach;
                    let total = covered.saturating_sub(size);
                    let (less, more) = (total / 2, total - total / 2);
                    (pads[0][axis], pads[1][axis]) =
                        if auto == "SAME_UPPER" { (less, more) } else { (more, less) };
                }
                other => return Err(format!("attribute `auto_pad` = `{other}` is not supported")),
            }
            let padded = size + pads[0][axis] + pads[1][axis];
            if ceil && padded > reach {
                let mut positions = (padded - reach).div_ceil(stride);
                // A window that would begin in the padding at the end is left out.
                if positions * stride >= size + pads[0][axis] {
                    positions -= 1;
                }
                pads[1][axis] += (positions * stride + reach).saturating_sub(padded);
            }
        }
        Ok(Window { kernel, strides, dilations, pads })
    }
}

impl Window {
    /// Top, left, bottom, right.
    fn flat_pads(&self) -> [usize; 4] {
        let ([top, left], [bottom, right]) = (plane(&self.pads[0], 0), plane(&self.pads[1], 0));
        [top, left, bottom, right]
    }
}

/// Vertical and horizontal value; one spatial axis is the horizontal one.
fn plane(values: &[usize], vertical: usize) -> [usize; 2] {
    match *values {
        [v, h] => [v, h],
        [h] => [vertical, h],
        _ => unreachable!("there are one or two spatial axes"),
    }
}

/// Axes of the whole tensor as sorted axes of the sample; `rank` is the sample's.
pub(super) fn sample_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut out: Vec<usize> =
        axes.iter().map(|&axis| sample_axis(axis, rank)).collect::<Result<_, _>>()?;
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// An axis of the whole tensor, of rank `rank` + 1, as an axis of the sample.
pub(super) fn sample_axis(axis: i64, rank: usize) -> Result<usize, String> {
    let whole = rank as i64 + 1;
    let positive = if axis < 0 { axis.saturating_add(whole) } else { axis };
    match positive {
        0 => Err("works on the batch axis: it would mix samples".to_owned()),
        1.. if positive < whole => Ok(positive as usize - 1),
        _ => Err(format!("axis {axis} of a tensor of rank {whole}")),
    }
}
