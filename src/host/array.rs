//! A shape and its f64 values: what every op's definition computes with.

use crate::shape::Shape;

/// Row-major f64 values that belong to someone else.
#[derive(Clone, Copy, Debug)]
pub struct ArrayView<'a> {
    /// The shape.
    pub shape: Shape,
    /// `shape.len()` values.
    pub data: &'a [f64],
}

/// Row-major f64 values.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The shape.
    pub shape: Shape,
    /// `shape.len()` values.
    pub data: Vec<f64>,
}

impl Array {
    /// An array of these values. Panics if their number is not the shape's.
    #[track_caller]
    pub fn new(shape: impl Into<Shape>, data: Vec<f64>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.len(), data.len(), "{} values for shape {shape}", data.len());
        Self { shape, data }
    }

    /// An array of f32 values.
    #[track_caller]
    pub fn from_f32(shape: impl Into<Shape>, data: &[f32]) -> Self {
        Self::new(shape, data.iter().map(|v| f64::from(*v)).collect())
    }

    /// Zeros.
    pub fn zeros(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        Self { shape, data: vec![0.0; shape.len()] }
    }

    /// This, borrowed.
    pub fn view(&self) -> ArrayView<'_> {
        ArrayView { shape: self.shape, data: &self.data }
    }

    /// The values rounded to f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|v| *v as f32).collect()
    }
}
