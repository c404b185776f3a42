//! What the quantizer may do, and what the hardware allows.

/// How the range of an activation tensor is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RangeRule {
    /// The largest magnitude seen.
    Largest,
    /// The magnitude that this share of the values stays below (0 … 1).
    Percentile(f64),
    /// Least squared error of the tensor itself.
    SquaredError,
    /// Least squared error of the result of the layer that reads the tensor: the squared-error
    /// range times each of a few factors is tried. Above [`Methods::OUTPUT_ERROR_BITS`] bits it is
    /// [`RangeRule::SquaredError`].
    OutputError,
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Each to its nearest code.
    Nearest,
    /// One after another, the rest making up for the error so far, measured on the second moments
    /// of the layer's input: the nearest plane of a lattice, as in GPTQ (Frantar et al. 2022,
    /// arXiv 2210.17323), which takes the same steps.
    Compensated,
}

/// What a layer's result is corrected by after rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correction {
    /// Nothing.
    None,
    /// Each channel's mean is that of the float layer again.
    Bias,
    /// Each channel's mean and variance are: what re-estimating batch-norm statistics at this width
    /// comes to. The scale takes in the factor.
    Statistics,
}

/// The steps of quantization. Each can be switched by itself; [`Methods::plain`] and
/// [`Methods::best`] are the two that are used.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent switches")]
pub struct Methods {
    /// Ranges of activations.
    pub range: RangeRule,
    /// Regression of each layer's weights onto the float result given the quantized input. The
    /// ridge is chosen per layer by held-out error.
    pub regression: bool,
    /// Rounding of weights.
    pub rounding: Rounding,
    /// Scales of weights may be negative, so that the additional negative code can serve the
    /// longer tail of either sign.
    pub signed_scales: bool,
    /// Passes of coordinate descent over the codes.
    pub descent: usize,
    /// Several scales are tried per channel, and the closed-form best scale for the codes is taken
    /// between passes of descent.
    pub refit: bool,
    /// Correction of means and variances.
    pub correction: Correction,
    /// A layer whose result is added to another tensor also makes up for that tensor's error.
    pub residual_error: bool,
    /// So many times a layer followed by a clamp (ReLU) is fitted again to what the clamp lets
    /// through: where the float result is cut off, any result that is cut off too will do.
    pub activation_aware: usize,
    /// Channels of a layer's input may have scales of their own, which the layers on both sides
    /// take in.
    pub equalization: bool,
    /// Signed activations may have a zero point other than the middle code.
    pub zero_points: bool,
    /// At most so many steps of gradient descent on the scales and biases of the whole network, towards the
    /// float network's scores, twice as many with fewer than 256 samples; 0 for none. An eighth of the
    /// samples then judges and is not fitted to.
    pub tuning: usize,
    /// Plain rounding is a candidate in every layer and wins where its held-out error is least.
    pub fall_back: bool,
}

impl Methods {
    /// Up to this width of activations zero points are worth their place.
    pub const ZERO_POINT_BITS: u8 = 6;
    /// Layers of at most this width, in weights or activations, are tuned together with the rest of
    /// their point; wider ones are not, the last excepted, and points may share them.
    pub const TUNED_BITS: u8 = 7;
    /// Up to this width of activations clipping is worth a search by output error.
    pub const OUTPUT_ERROR_BITS: u8 = 4;
    /// From this width of weights on a layer is rounded plainly: rounding is then far below what
    /// calibration data could tell apart.
    pub const EXACT_BITS: u8 = 10;

    /// Whether a layer's integers depend on its data.
    pub(super) fn needs_data(&self) -> bool {
        self.regression
            || self.rounding != Rounding::Nearest
            || self.correction != Correction::None
            || self.fall_back
    }

    /// Nearest rounding, scales of least squared error, nothing else: the baseline.
    pub const fn plain() -> Self {
        Self {
            range: RangeRule::SquaredError,
            regression: false,
            rounding: Rounding::Nearest,
            signed_scales: false,
            descent: 0,
            refit: false,
            correction: Correction::None,
            residual_error: false,
            activation_aware: 0,
            equalization: false,
            zero_points: false,
            tuning: 0,
            fall_back: false,
        }
    }

    /// The default: everything, chosen per layer by held-out output error.
    pub const fn best() -> Self {
        Self {
            range: RangeRule::OutputError,
            regression: true,
            rounding: Rounding::Compensated,
            signed_scales: true,
            descent: 2,
            refit: true,
            correction: Correction::Bias,
            residual_error: true,
            activation_aware: 3,
            equalization: true,
            zero_points: true,
            tuning: 256,
            fall_back: true,
        }
    }
}

/// What the hardware allows of scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// One scale for all output channels of a layer.
    pub per_tensor_scales: bool,
    /// All scales, of weights and of activations, are powers of two.
    pub power_of_two_scales: bool,
    /// Signed activations have their zero in the middle.
    pub no_zero_points: bool,
    /// What weights of 2 bits may be.
    pub two_bit_codes: CodeBooks,
}

/// Which integers weights of 2 bits may stand for. A layer takes those of least held-out error; nested
/// points, whose codes are another's leading bits, have no choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeBooks {
    /// {-2, -1, 0, 1}
    pub twos_complement: bool,
    /// {-1, 0, 1}
    pub ternary: bool,
    /// {-3, -1, 1, 3}
    pub odd: bool,
}

impl Default for CodeBooks {
    fn default() -> Self {
        Self { twos_complement: true, ternary: false, odd: false }
    }
}
