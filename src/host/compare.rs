//! How far a result is from its reference.

/// Distances of a result `a` from a reference `b`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ratios {
    /// `||a-b||_2 / ||b||_2`.
    pub norm: f64,
    /// `||a-b||_inf / ||b||_inf`.
    pub max: f64,
    /// `||b||_inf`.
    pub scale: f64,
    /// `||a||_inf`.
    pub size: f64,
}

impl Ratios {
    /// The larger of the norm ratio and a tenth of the inf-norm ratio: the inf-norm's bound is ten times looser.
    pub fn worst(&self) -> f64 {
        if self.norm.is_nan() || self.max.is_nan() { f64::NAN } else { self.norm.max(self.max / 10.0) }
    }
}

/// The distances of `a` from `b`; NaN anywhere in `a`, or a difference in length, gives NaN ratios.
pub fn ratios(a: &[f64], b: &[f64]) -> Ratios {
    if a.len() != b.len() || a.iter().any(|v| !v.is_finite()) {
        return Ratios { norm: f64::NAN, max: f64::NAN, scale: f64::NAN, size: f64::NAN };
    }
    let mut r = Ratios::default();
    let (mut difference, mut reference, mut largest) = (0.0, 0.0, 0.0f64);
    for (x, y) in a.iter().zip(b) {
        difference += (x - y) * (x - y);
        reference += y * y;
        largest = largest.max((x - y).abs());
        r.scale = r.scale.max(y.abs());
        r.size = r.size.max(x.abs());
    }
    let over = |n: f64, d: f64| if n == 0.0 { 0.0 } else { n / d };
    r.norm = over(difference.sqrt(), reference.sqrt());
    r.max = over(largest, r.scale);
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_see_size_and_nan() {
        let r = ratios(&[1.0, 2.2], &[1.0, 2.0]);
        assert!((r.max - 0.1).abs() < 1e-12 && (r.norm - 0.2 / 5f64.sqrt()).abs() < 1e-12);
        assert!(ratios(&[f64::NAN], &[1.0]).worst().is_nan());
        assert!(ratios(&[1.0], &[]).worst().is_nan());
        assert_eq!(ratios(&[0.0], &[0.0]).worst(), 0.0);
        assert!(ratios(&[1.0], &[0.0]).worst().is_infinite());
    }
}
