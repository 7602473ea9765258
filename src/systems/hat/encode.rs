//! The two encoders and the maps to the width at which they are aligned (sections 3.1 and 3.2 of the paper).

use super::{IMAGE, LEVELS, Run, TEXT};
use crate::nn::{bert, linear, swin};
use crate::ops::{Act, concat, materialize};
use crate::systems::{Form, Items};
use crate::tensor::Tensor;

/// Swin's stage of each level.
pub(super) const STAGES: [usize; 3] = [3, 1, 2];
/// BERT's layer of each level, from 0; of the first the last.
pub(super) const LAYERS: [usize; 3] = [usize::MAX, 3, 9];

/// Encodes pictures `image [n, 3, size, size]`: of each level `image_feats..  [n, rows, hidden]`.
pub(super) fn images(run: &Run, x: &Items) -> Items {
    let image = x.at("image");
    let (n, most) = (image.shape()[0], run.config.swin.at_once(&image.device()));
    let parts: Vec<[Tensor; 3]> = (0..n)
        .step_by(most)
        .map(|first| {
            let count = most.min(n - first);
            of_pictures(
                run,
                &if count == n { image.clone() } else { materialize(image.view().slice(0, first, count)) },
            )
        })
        .collect();
    LEVELS.iter().enumerate().fold(Items::default(), |items, (level, suffix)| {
        let parts: Vec<Tensor> = parts.iter().map(|part| part[level].clone()).collect();
        let all = concat(&parts, 0);
        let name = format!("image_feats{suffix}");
        run.pass.tap(&name, &all);
        items.with(&name, all)
    })
}

fn of_pictures(run: &Run, image: &Tensor) -> [Tensor; 3] {
    let pass = run.pass;
    let backbone = swin::Run {
        scope: pass.scope.sub(IMAGE.trim_end_matches('.')),
        config: &run.config.swin,
        dropouts: pass.dropouts.as_ref(),
        recomputed: pass.form == Form::Recomputed,
    };
    let stages = backbone.stages(image, &mut |_, _| ());
    std::array::from_fn(|level| {
        let map = pass.scope.sub(&format!("cross_modal_image_transform{}", LEVELS[level]));
        linear(&map, &backbone.normed(&stages, STAGES[level]), Act::None)
    })
}

/// Encodes captions of `input_ids [n, words]`, their `input_mask` and `lengths`: of each level `text_feats.. [n, words,
/// hidden]`, and the lengths.
pub(super) fn captions(run: &Run, x: &Items) -> Items {
    let pass = run.pass;
    let tokens =
        bert::Tokens { ids: x.at("input_ids").clone(), mask: x.at("input_mask").clone(), types: None };
    let scope = pass.scope.sub(TEXT.trim_end_matches('.'));
    let states = bert::encode(&scope, &run.config.bert, &tokens, pass.text_dropouts());
    let last = states.layers.len() - 1;
    for (i, layer) in states.layers.iter().enumerate() {
        pass.tap(&format!("bert_layer_{i}"), layer);
    }
    let items = Items::default().with("lengths", x.at("lengths").clone());
    LEVELS.iter().zip(LAYERS).fold(items, |items, (suffix, layer)| {
        let map = pass.scope.sub(&format!("cross_modal_text_transform{suffix}"));
        let mapped = linear(&map, &states.layers[layer.min(last)], Act::None);
        let name = format!("text_feats{suffix}");
        pass.tap(&name, &mapped);
        items.with(&name, mapped)
    })
}
