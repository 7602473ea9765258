//! Fixtures of a whole evaluation whose boxes are in pixels: what the published loader makes of them, and the scores with
//! the boxes of the published evaluation, without folds and with them, and with each image's own.

use super::compare::{Row, Rules, family};
use super::{Fixture, system};
use crate::data::batches::BoxRead;
use crate::data::boxes::divide;
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::systems::Kind;
use crate::tensor::Device;

/// What a fixture of this kind has in place of `in.bboxes`.
pub(super) const BOXES: &str = "in.bboxes_pixels";
/// What is compared under another name than a system gives it.
const RENAMED: [(&str, &str); 2] =
    [("out.img_embs_one_per_image", "out.img_emb"), ("out.cap_embs", "out.cap_emb")];

pub(super) fn check(fixture: &Fixture, kind: Kind, device: &Device) -> Result<Vec<Row>> {
    let (shape, pixels) = fixture.tensor(BOXES)?;
    let (of_sizes, sizes) = fixture.tensor("in.image_wh")?;
    let captions = fixture.tensor("in.captions")?.0[0];
    let images = shape.dims().first().copied().unwrap_or(0);
    if shape.rank() != 3 || of_sizes.dims() != [images, 2] || !captions.is_multiple_of(images.max(1)) {
        return Err(Error::new("images, boxes and captions do not belong together")
            .at(&fixture.place)
            .found(format!("boxes {shape}, sizes {of_sizes}, {captions} captions")));
    }
    let (row, each, batch) = (captions / images, shape[1] * shape[2], fixture.number("batch_size")? as usize);
    let divided = |image: usize, times: usize, out: &mut Vec<f32>| {
        divide(
            &pixels[image * each..(image + 1) * each],
            [sizes[2 * image], sizes[2 * image + 1]],
            times,
            out,
        );
    };
    let read = |of: &dyn Fn(usize) -> (usize, usize), n: usize| {
        let mut all = Vec::with_capacity(n * each);
        (0..n).map(of).for_each(|(image, times)| divided(image, times, &mut all));
        all
    };
    let seen = |caption: usize| (caption / row, BoxRead::with(caption, captions, row, batch, 0).times);

    let mut boxes = std::collections::BTreeMap::new();
    for name in fixture.family("out.bbox_read_") {
        let times = name.parse().map_err(|_| Error::new(format!("out.bbox_read_{name} has no number")))?;
        boxes.insert(format!("bbox_read_{name}"), read(&|_| (0, times), 1));
    }
    boxes.insert("bbox_seen_by_encode_data".into(), read(&seen, captions));
    let boxes = boxes.into_iter().map(|(n, v)| (n, v.into_iter().map(f64::from).collect())).collect();
    let mut rows = family(fixture, "out.", "data", Rules::new(fixture, device, None), &boxes, |n| {
        n.starts_with("bbox_")
    });

    type BoxOf<'a> = &'a dyn Fn(usize) -> (usize, usize);
    let scored: [(&str, BoxOf); 3] = [
        ("out.sims_with_correct_boxes", &|image| (image, 1)),
        ("out.sims_fold5_strided_boxes", &|image| seen(image * row)),
        ("out.sims_no_fold_boxes_of_caption_i", &seen),
    ];
    for (name, of) in scored {
        let mut one =
            Fixture { place: fixture.place.clone(), spec: fixture.spec.clone(), ..Fixture::default() };
        let is_given = |name: &str| !name.starts_with("out.") && name != BOXES && name != "in.image_wh";
        one.tensors
            .extend(fixture.tensors.iter().filter(|t| is_given(t.0)).map(|(n, t)| (n.clone(), t.clone())));
        one.tensors.insert("in.bboxes".into(), (Shape::new(shape.dims()), read(of, images)));
        for (theirs, ours) in RENAMED.into_iter().chain([(name, "out.scores")]) {
            one.tensors.insert(ours.into(), fixture.tensor(theirs)?.clone());
        }
        rows.extend(system::check(&one, kind, device)?.into_iter().map(|row| {
            let theirs =
                RENAMED.iter().find(|(_, ours)| *ours == row.name).map_or(name, |(theirs, _)| theirs);
            Row { name: theirs.into(), ..row }
        }));
    }
    Ok(rows)
}
