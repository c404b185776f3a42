//! Checks an integer network that comes from a file, so that running it can't go wrong.

mod attention;

use bitgear_core::bits::BitWidth;
use bitgear_core::kernels::{MapLayout, PoolShape, channel_bound};

use super::model::{Format, IntegerModel, MacStep, Map, MapId, NOWHERE, Requantization, Step};

/// The integer network contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("integer network of point `{point}`: {place}: {reason}")]
pub struct InvalidModel {
    point: String,
    place: String,
    reason: String,
}

/// Largest number of elements of one map: 1 GiB of 16-bit codes.
const MAX_MAP: usize = 1 << 29;
/// Largest extent of anything, so that no product below can overflow.
const MAX_EXTENT: usize = 1 << 20;
/// |t| stays below this, where doubles count every integer.
const MAX_TERM: i128 = 1 << 53;
/// |t · multiplier| stays below this, where doubles round to integers.
const MAX_RESULT: f64 = (1_u64 << 51) as f64;

type Check = Result<(), String>;

fn ensure(condition: bool, reason: impl FnOnce() -> String) -> Check {
    if condition { Ok(()) } else { Err(reason()) }
}

impl IntegerModel {
    /// Checks that every step reads and writes what exists, within memory, with sums that can't
    /// overflow.
    ///
    /// # Errors
    ///
    /// The first contradiction, with its place.
    pub fn validate(&self) -> Result<(), InvalidModel> {
        let at = |place: String, check: Check| {
            check.map_err(|reason| InvalidModel { point: self.point.clone(), place, reason })
        };
        for (index, map) in self.maps.iter().enumerate() {
            at(format!("map {index} `{}`", map.name), check_map(map))?;
        }
        at("scores".to_owned(), self.check_scores())?;
        let input_len = self.input_shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        for &map in &self.inputs {
            at(
                "input".to_owned(),
                self.codes(map).and_then(|(layout, _)| {
                    let len = layout.height * layout.width * layout.channels;
                    ensure(Some(len) == input_len, || {
                        format!("map {map} must hold {input_len:?} values, got {len}")
                    })
                }),
            )?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            at(format!("step {index}"), self.check_step(step))?;
        }
        Ok(())
    }

    fn map(&self, map: MapId) -> Result<&Map, String> {
        self.maps.get(map).ok_or_else(|| format!("map {map} of {} does not exist", self.maps.len()))
    }

    /// Layout and largest code of a map of codes.
    fn codes(&self, map: MapId) -> Result<(MapLayout, BitWidth), String> {
        let found = self.map(map)?;
        match &found.format {
            Format::Codes(scale) => Ok((found.layout, scale.bits)),
            Format::Scores { .. } => Err(format!("map {map} holds scores, expected codes")),
        }
    }

    fn check_scores(&self) -> Check {
        let map = self.map(self.scores)?;
        let is_scores = matches!(map.format, Format::Scores { .. });
        ensure(is_scores, || format!("map {} holds codes, expected scores", self.scores))?;
        let MapLayout { height, width, channels, pads } = map.layout;
        // Read as one run of memory.
        ensure(height == 1 && width == 1 && channels > 0 && pads == [0; 4], || {
            format!("expected one pixel without halo, got {:?}", map.layout)
        })
    }

    fn check_step(&self, step: &Step) -> Check {
        match step {
            Step::Mac(mac) => self.check_mac(mac),
            Step::MatMul(step) => self.check_matmul(step),
            Step::Island(step) => self.check_island(step),
            Step::Combine { operands, bias, outputs } => {
                let out = self.outputs(outputs, None)?;
                ensure(bias.len() == out.channels, || {
                    format!("expected {} biases, got {}", out.channels, bias.len())
                })?;
                let mut largest =
                    i128::from(bias.iter().map(|b| b.unsigned_abs()).max().unwrap_or(0));
                for (map, multipliers) in operands {
                    let (layout, bits) = self.codes(*map)?;
                    check_broadcast(&layout, &out)?;
                    ensure(multipliers.len() == out.channels, || {
                        format!("expected {} multipliers, got {}", out.channels, multipliers.len())
                    })?;
                    let multiplier =
                        multipliers.iter().map(|m| m.unsigned_abs()).max().unwrap_or(0);
                    largest += i128::from(multiplier) * i128::from(bits.code_max());
                }
                check_terms(largest, outputs, operands.iter().map(|o| o.0))
            }
            Step::Product { a, b, outputs } => {
                let out = self.outputs(outputs, None)?;
                for map in [a, b] {
                    check_broadcast(&self.codes(*map)?.0, &out)?;
                }
                check_terms(1 << 32, outputs, [*a, *b])
            }
            Step::Average { input, window, outputs } => {
                let (layout, _) = self.codes(*input)?;
                let out = self.outputs(outputs, Some(window.kernel))?;
                check_window(window, &layout, &out)?;
                let pixels = (window.kernel[0] * window.kernel[1]) as i128;
                check_terms(pixels << 16, outputs, [*input])
            }
            Step::MaxPool { input, window, output } => {
                let ((from, bits), (to, to_bits)) = (self.codes(*input)?, self.codes(*output)?);
                ensure(input != output && bits == to_bits, || {
                    "operand and result differ".to_owned()
                })?;
                check_window(window, &from, &to)
            }
            Step::Lookup { input, table, output } => {
                let ((from, bits), (to, to_bits)) = (self.codes(*input)?, self.codes(*output)?);
                ensure(input != output && same_pixels(&from, &to), || "shapes differ".to_owned())?;
                ensure(table.len() == bits.levels() as usize, || {
                    format!("expected a table of {}, got {}", bits.levels(), table.len())
                })?;
                ensure(table.iter().all(|&c| u32::from(c) <= to_bits.code_max()), || {
                    format!("table holds codes of more than {to_bits} bits")
                })
            }
            Step::Gather { sources, output } => {
                let (to, to_bits) = self.codes(*output)?;
                for (map, indices) in sources {
                    let (from, bits) = self.codes(*map)?;
                    let elements = to.height * to.width * to.channels;
                    ensure(map != output && bits == to_bits, || "formats differ".to_owned())?;
                    ensure(indices.len() == elements, || {
                        format!("expected {elements} indices, got {}", indices.len())
                    })?;
                    let inside = |&i: &u32| i == NOWHERE || (i as usize) < from.len();
                    ensure(indices.iter().all(inside), || "index outside the operand".to_owned())?;
                }
                Ok(())
            }
        }
    }

    fn check_mac(&self, mac: &MacStep) -> Check {
        let (layout, bits) = self.codes(mac.input)?;
        let shape = &mac.shape;
        ensure(shape.input == layout, || "operand's geometry differs from its map's".to_owned())?;
        let extents = [shape.kernel, shape.strides, shape.dilations, [shape.groups; 2]];
        ensure(extents.iter().flatten().all(|&e| (1..=MAX_EXTENT).contains(&e)), || {
            "extents must be positive".to_owned()
        })?;
        let out = self.outputs(&mac.outputs, None)?;
        let expected = MapLayout::new(shape.out_height, shape.out_width, shape.out_channels);
        ensure(same_pixels(&out, &expected), || format!("expected {expected:?}, got {out:?}"))?;
        let divides = layout.channels.is_multiple_of(shape.groups)
            && shape.out_channels.is_multiple_of(shape.groups);
        ensure(divides, || format!("{} groups don't divide the channels", shape.groups))?;
        for axis in 0..2 {
            let size = [layout.height, layout.width][axis];
            let out = [shape.out_height, shape.out_width][axis];
            let (before, after) = (layout.pads[axis], layout.pads[axis + 2]);
            let last =
                (out - 1) * shape.strides[axis] + (shape.kernel[axis] - 1) * shape.dilations[axis];
            ensure(shape.pads[axis] <= before && last < shape.pads[axis] + size + after, || {
                "window leaves the operand's halo".to_owned()
            })?;
        }
        let window = shape.kernel[0] * shape.kernel[1] * (layout.channels / shape.groups);
        ensure(mac.codes.len() == window * shape.out_channels, || {
            format!("expected {} weights, got {}", window * shape.out_channels, mac.codes.len())
        })?;
        let width = BitWidth::new(mac.weight_bits).map_err(|e| e.to_string())?;
        let (low, high) = if mac.odd {
            (-(width.code_max() as i32), width.code_max() as i32)
        } else {
            width.weight_range()
        };
        let fits = |&c: &i16| (low..=high).contains(&i32::from(c)) && (!mac.odd || c % 2 != 0);
        ensure(mac.codes.iter().all(fits), || {
            format!("weight outside {low} … {high}, or not odd")
        })?;
        let channels = shape.out_channels;
        ensure(mac.bias.len() == channels && mac.shift <= 32, || {
            format!("expected {channels} biases and a shift of at most 32")
        })?;
        let mut side = vec![0; channels];
        if let Some((map, multipliers)) = &mac.residual {
            let (layout, bits) = self.codes(*map)?;
            ensure(multipliers.len() == channels && same_pixels(&layout, &out), || {
                "residual's shape differs from the result's".to_owned()
            })?;
            for (side, &multiplier) in side.iter_mut().zip(multipliers) {
                *side = i128::from(multiplier).abs() * i128::from(bits.code_max());
            }
        }
        let largest = (0..channels).map(|channel| {
            let (low, high) = channel_bound(shape, &mac.codes, bits, channel);
            let acc = i128::from(low).abs().max(i128::from(high).abs()) << mac.shift;
            acc + i128::from(mac.bias[channel]).abs() + side[channel]
        });
        let operands = mac.residual.iter().map(|(map, _)| *map).chain([mac.input]);
        check_terms(largest.max().unwrap_or(0), &mac.outputs, operands)
    }

    /// All versions of a result have one shape, which is returned, and their own multipliers.
    fn outputs(
        &self,
        outputs: &[Requantization],
        counts: Option<[usize; 2]>,
    ) -> Result<MapLayout, String> {
        let first = outputs.first().ok_or("step without a result")?;
        let shape = self.map(first.map)?.layout;
        for (index, output) in outputs.iter().enumerate() {
            let map = self.map(output.map)?;
            ensure(same_pixels(&map.layout, &shape), || "versions differ in shape".to_owned())?;
            ensure(outputs[..index].iter().all(|o| o.map != output.map), || {
                format!("map {} is written twice", output.map)
            })?;
            let expected = counts.map_or(shape.channels, |[h, w]| h.saturating_mul(w));
            ensure(output.multipliers.len() == expected, || {
                format!("expected {expected} multipliers, got {}", output.multipliers.len())
            })?;
            let limit = match &map.format {
                Format::Codes(scale) => 0..=i64::from(scale.bits.code_max()),
                Format::Scores { .. } => i64::from(i32::MIN)..=i64::from(i32::MAX),
            };
            let within = |value: i32| limit.contains(&i64::from(value));
            ensure(within(output.low) && within(output.high) && output.low <= output.high, || {
                format!("limits {} … {} don't fit map {}", output.low, output.high, output.map)
            })?;
        }
        Ok(shape)
    }
}

/// Sums of at most `largest` stay exact, and no operand is also a result.
fn check_terms(
    largest: i128,
    outputs: &[Requantization],
    operands: impl IntoIterator<Item = MapId>,
) -> Check {
    ensure(largest < MAX_TERM, || format!("sums reach {largest}, expected below 2^53"))?;
    let multiplier = outputs.iter().flat_map(|o| &o.multipliers).fold(0.0_f64, |max, &m| {
        if m.is_finite() { max.max(f64::from(m.abs())) } else { f64::INFINITY }
    });
    ensure(largest as f64 * multiplier < MAX_RESULT, || {
        format!("results reach {largest} · {multiplier}, expected below 2^51")
    })?;
    let mut operands = operands.into_iter();
    ensure(operands.all(|map| outputs.iter().all(|o| o.map != map)), || {
        "a map is operand and result of one step".to_owned()
    })
}

fn check_broadcast(operand: &MapLayout, out: &MapLayout) -> Check {
    let pixels = (operand.height, operand.width) == (1, 1)
        || (operand.height, operand.width) == (out.height, out.width);
    let channels = operand.channels == 1 || operand.channels == out.channels;
    ensure(pixels && channels, || format!("{operand:?} doesn't broadcast to {out:?}"))
}

fn same_pixels(a: &MapLayout, b: &MapLayout) -> bool {
    (a.height, a.width, a.channels) == (b.height, b.width, b.channels)
}

fn check_map(map: &Map) -> Check {
    let MapLayout { height, width, channels, pads } = map.layout;
    let extents = [height, width, channels];
    ensure(extents.iter().all(|&e| (1..=MAX_EXTENT).contains(&e)), || {
        format!("extents must be 1 to {MAX_EXTENT}, got {extents:?}")
    })?;
    ensure(pads.iter().all(|&p| p <= MAX_EXTENT), || format!("halo {pads:?} is too large"))?;
    let rows = (height + pads[0] + pads[2]) as u128;
    let row = (width + pads[1] + pads[3]) as u128 * channels.next_multiple_of(4) as u128;
    ensure(rows * row <= MAX_MAP as u128, || format!("more than {MAX_MAP} elements"))?;
    let step = map.format.step();
    ensure(step.is_finite() && step > 0.0, || format!("scale must be positive, got {step}"))?;
    let len = map.constant.len();
    ensure(len == 0 || len == height * width * channels, || {
        format!("expected {} constant codes, got {len}", height * width * channels)
    })?;
    if let Format::Codes(scale) = &map.format {
        let max = scale.bits.code_max();
        let inside = map.constant.iter().all(|&c| u32::from(c) <= max);
        ensure(inside, || format!("constant codes must be at most {max}"))?;
    }
    Ok(())
}

fn check_window(window: &PoolShape, input: &MapLayout, out: &MapLayout) -> Check {
    let extents = [window.kernel, window.strides];
    ensure(extents.iter().flatten().all(|&e| (1..=MAX_EXTENT).contains(&e)), || {
        "window and strides must be positive".to_owned()
    })?;
    let fits = (window.out_height, window.out_width, input.channels)
        == (out.height, out.width, out.channels);
    ensure(fits, || format!("expected {window:?} to give {out:?}"))?;
    for axis in 0..2 {
        let size = [input.height, input.width][axis];
        let out = [out.height, out.width][axis];
        // Every window covers at least one pixel.
        let last = (out - 1) * window.strides[axis];
        let covers = window.pads[axis] < window.kernel[axis] && last < window.pads[axis] + size;
        ensure(covers, || "a window covers no pixel".to_owned())?;
    }
    Ok(())
}
