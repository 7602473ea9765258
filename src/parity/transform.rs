//! Fixtures of what is made of a decoded picture before a model sees it. Both sides are bytes and single f32
//! operations, so results are equal or wrong.

use std::collections::BTreeMap;

use super::Fixture;
use super::compare::Row;
use crate::data::pictures::{Area, Normal, Rgb, crop_resize, evaluation_sides, evaluation_view, middle};
use crate::error::{Error, Result};

const PATH: &str = "data";
/// The largest side that is compared.
const MAX_SIDE: usize = 8192;

/// Whether a fixture is of this kind.
pub(super) fn is_one(fixture: &Fixture) -> bool {
    ["center_crop", "crop_size"].iter().any(|option| fixture.spec["config"].get(option).is_some())
}

pub(super) fn check(fixture: &Fixture) -> Result<Vec<Row>> {
    let normal = Normal::new(three(fixture, "mean")?, three(fixture, "std")?);
    let mut out = BTreeMap::new();
    if fixture.spec["config"].get("center_crop").is_some() {
        evaluation(fixture, &normal, &mut out)?;
    } else {
        let numbers: Vec<&str> =
            fixture.family("in.").filter_map(|name| name.strip_suffix(".image")).collect();
        for number in numbers {
            training(fixture, &normal, number, &mut out)?;
        }
    }
    Ok(fixture.family("out.").map(|name| compared(fixture, name, out.get(name))).collect())
}

type Results = BTreeMap<String, Vec<f32>>;

fn evaluation(fixture: &Fixture, normal: &Normal, out: &mut Results) -> Result<()> {
    let picture = picture(fixture, "in.image")?;
    let [short, crop] = [side(fixture, "resize")?, side(fixture, "center_crop")?];
    if crop > short {
        return Err(Error::new("the crop is larger than the resized picture").at(&fixture.place));
    }
    let sides = evaluation_sides(picture.sides(), short);
    let part = middle(sides, crop);
    let numbers = |values: [usize; 2]| values.map(|v| v as f32).to_vec();
    out.insert("resized_hw".into(), numbers([sides[1], sides[0]]));
    out.insert("crop_top_left".into(), numbers([part.top, part.left]));
    out.insert("image".into(), normalised(normal, &evaluation_view(&picture, short, crop), false));
    Ok(())
}

fn training(fixture: &Fixture, normal: &Normal, number: &str, out: &mut Results) -> Result<()> {
    let picture = picture(fixture, &format!("in.{number}.image"))?;
    let crop = side(fixture, "crop_size")?;
    let given = |name: &str| Ok::<_, Error>(&fixture.tensor(&format!("in.{number}.{name}"))?.1);
    let (part, flip) = (given("crop_ijhw")?, given("flip")?);
    let ([top, left, height, width], [flip]) = (part.as_slice(), flip.as_slice()) else {
        return Err(Error::new("crop_ijhw is not four numbers, or flip not one").at(&fixture.place));
    };
    let [left, top, width, height] = [left, top, width, height].map(|v| *v as usize);
    let part = Area { left, top, width, height };
    if !part.lies_in(picture.sides()) {
        let found = format!("{part:?} of {:?}", picture.sides());
        return Err(Error::new("the crop does not lie in the picture").at(&fixture.place).found(found));
    }
    let seen = crop_resize(&picture, part, [crop, crop]);
    out.insert(format!("{number}.image"), normalised(normal, &seen, *flip != 0.0));
    Ok(())
}

fn normalised(normal: &Normal, picture: &Rgb, mirrored: bool) -> Vec<f32> {
    let mut out = vec![0.0; picture.pixels.len()];
    normal.write(&picture.pixels, picture.width, mirrored, &mut out);
    out
}

fn picture(fixture: &Fixture, name: &str) -> Result<Rgb> {
    let (shape, values) = fixture.tensor(name)?;
    let bytes: Vec<u8> = values.iter().map(|v| *v as u8).collect();
    let same = bytes.iter().zip(values).all(|(byte, v)| f32::from(*byte) == *v);
    match *shape.dims() {
        [height, width, 3] if same && width > 0 && height > 0 => Ok(Rgb::new(width, height, bytes)),
        _ => Err(Error::new(format!("{name} is no picture"))
            .at(&fixture.place)
            .expected("[height, width, 3] of whole numbers from 0 to 255")
            .found(shape)),
    }
}

fn side(fixture: &Fixture, option: &str) -> Result<usize> {
    let found = fixture.number(option)?;
    let side = found as usize;
    if side as f64 == found && (1..=MAX_SIDE).contains(&side) {
        return Ok(side);
    }
    Err(Error::new(format!("`{option}` is no side of a picture"))
        .at(&fixture.place)
        .expected(format!("1 to {MAX_SIDE}"))
        .found(found))
}

fn three(fixture: &Fixture, option: &str) -> Result<[f64; 3]> {
    let found = &fixture.spec["config"][option];
    serde_json::from_value(found.clone()).map_err(|_| {
        Error::new(format!("`{option}` is not three numbers in its configuration"))
            .at(&fixture.place)
            .found(found)
    })
}

fn compared(fixture: &Fixture, name: &str, values: Option<&Vec<f32>>) -> Row {
    let full = format!("out.{name}");
    let reference = &fixture.tensors[&full].1;
    match values {
        None => Row::missing(PATH, full, "not computed"),
        Some(values) if values.len() != reference.len() => {
            let problem = format!("{} values instead of {}", values.len(), reference.len());
            Row::missing(PATH, full, &problem)
        }
        Some(values) => {
            let off = values.iter().zip(reference).map(|(a, b)| f64::from((a - b).abs()));
            let worst = off.fold(0.0, |m: f64, v| if v.is_nan() { v } else { m.max(v) });
            Row::new(PATH, full, worst, 0.0)
        }
    }
}
