//! A dense float tensor: shape and row-major values.

/// Row-major `f32` values of a given shape. A scalar has the empty shape and one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Tensor {
    /// A tensor of `shape` with the given row-major `values`.
    ///
    /// # Panics
    ///
    /// When the number of values is not the product of `shape`.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?}");
        Self { shape, values }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let len = shape.iter().product();
        Self { shape, values: vec![0.0; len] }
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values, row-major, to write.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The values, taking the tensor apart.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// The same values under another shape.
    ///
    /// # Panics
    ///
    /// When the products of the shapes differ.
    #[must_use]
    pub fn reshaped(self, shape: impl Into<Vec<usize>>) -> Self {
        Self::new(shape, self.values)
    }
}
