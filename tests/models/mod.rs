//! Small models, and what their forms are compared by.

#![allow(dead_code, reason = "each test program uses its own part")]

use crossweave::nn::{ParamSpec, Params, Scope, swin};
use crossweave::systems::{Items, Pass, System};
use crossweave::tensor::{Device, Tape, Tensor};

/// A backbone of five blocks.
pub fn small_swin(img_size: usize) -> swin::Config {
    swin::Config {
        img_size,
        patch_size: 4,
        in_chans: 3,
        embed_dim: 8,
        depths: vec![1, 2, 1, 1],
        num_heads: vec![1, 2, 2, 4],
        mlp_ratio: 2.0,
        drop_path_rate: 0.0,
    }
}

/// Scores of a pass over fresh parameters, and the gradients of all of them of what the scores are weighted to, on the
/// host.
pub fn scores_and_gradients(
    system: &dyn System,
    (images, captions): &(Items, Items),
    pass: impl for<'a> Fn(Scope<'a>) -> Pass<'a>,
) -> Vec<Vec<f64>> {
    let params = Params::begin(&system.parameters(), &Device::Host, 5);
    let tape = Tape::new();
    let tracked = params.tracked(&tape, |_| true);
    let pass = pass(tracked.root());
    let scores = system.score(&pass, &system.images(&pass, images), &system.captions(&pass, captions));
    let weights: Vec<f32> = (0..scores.len()).map(|i| (i % 5) as f32 - 1.7).collect();
    let weights = Device::Host.tensor(scores.shape(), &weights);
    let grads = tape.backward(&scores.map2(&weights, |a, b| a * b).sum_all());
    let named = |t: &Tensor| t.to_f64().expect("the host works");
    let of = |spec: &ParamSpec| {
        grads.of(tracked.named(&spec.name)).map_or_else(|| vec![0.0; spec.shape.len()], named)
    };
    [named(&scores)].into_iter().chain(system.parameters().iter().map(of)).collect()
}
