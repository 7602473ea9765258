//! Fixtures of position tables: one, resampled for other sizes of image.

use std::collections::BTreeMap;

use super::Fixture;
use super::compare::{Row, Rules, family};
use crate::error::{Error, Result};
use crate::nn::position_table::resampled;
use crate::tensor::Device;

/// What the resampled tables' names begin with; the rest is the size of the images.
const TABLE: &str = "out.table_";

pub(super) fn is_of_tables(fixture: &Fixture) -> bool {
    fixture.family(TABLE).next().is_some()
}

/// The same on every device: loading a model resamples on the host.
pub(super) fn check(fixture: &Fixture) -> Result<Vec<Row>> {
    let mut inputs = fixture.family("in.");
    let (Some(name), None) = (inputs.next(), inputs.next()) else {
        return Err(Error::new("one table in, and its resampled ones out, were expected").at(&fixture.place));
    };
    let (shape, table) = fixture.tensor(&format!("in.{name}"))?;
    let square = |shape: &[usize]| {
        let side = shape.first()?.isqrt();
        (shape.len() == 2 && side * side == shape[0]).then_some((side, shape[1]))
    };
    let sides = |name: &str, shape: &[usize]| {
        square(shape).ok_or_else(|| Error::new(format!("{name} is no square table")).at(&fixture.place))
    };
    let (from, heads) = sides(name, shape.dims())?;
    let mut out = BTreeMap::new();
    for size in fixture.family(TABLE) {
        let full = format!("{TABLE}{size}");
        let (to, _) = sides(&full, fixture.tensor(&full)?.0.dims())?;
        let values = resampled(table, from, to, heads).into_iter().map(f64::from).collect();
        out.insert(format!("table_{size}"), values);
    }
    Ok(family(fixture, "out.", "fast", Rules::new(fixture, &Device::Host, None), &out, |_| true))
}
