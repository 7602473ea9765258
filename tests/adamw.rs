//! Adam and AdamW against their formulas, on both sides, and what a broken gradient does.

use crossweave::gpu::{Gpu, Options};
use crossweave::ops::{AdamState, AdamStep, adam, sum_of_squares};
use crossweave::tensor::Device;

const W: [f32; 5] = [1.0, -2.0, 0.5, 0.0, 3.0];
const G: [[f32; 5]; 3] =
    [[0.1, -0.2, 0.3, 0.0, -4.0], [0.5, 0.5, -0.5, 1.0, 2.0], [-0.3, 0.0, 0.1, 0.2, 0.7]];

fn devices() -> [Device; 2] {
    let gpu = Gpu::open(&Options { device: std::env::var("CROSSWEAVE_DEVICE").ok(), ..Options::default() });
    [Device::Host, Device::Gpu(gpu.expect("the tests need an adapter"))]
}

fn step(decay: f64, clip: f64) -> AdamStep {
    AdamStep { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay, clip }
}

/// The update as Loshchilov and Hutter write it, after clipping by the global norm.
fn expected(decay: f64, clip: f64) -> Vec<f64> {
    let mut w: Vec<f64> = W.iter().map(|v| f64::from(*v)).collect();
    let (mut m, mut v) = ([0.0f64; 5], [0.0f64; 5]);
    for (t, g) in G.iter().enumerate() {
        let norm = g.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let scale = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        for i in 0..5 {
            let x = f64::from(g[i]) * scale;
            m[i] = 0.9 * m[i] + 0.1 * x;
            v[i] = 0.999 * v[i] + 0.001 * x * x;
            let (a, b) = (1.0 - 0.9f64.powi(t as i32 + 1), 1.0 - 0.999f64.powi(t as i32 + 1));
            w[i] -= 0.01 * decay * w[i] + 0.01 * (m[i] / a) / ((v[i] / b).sqrt() + 1e-8);
        }
    }
    w
}

#[test]
fn steps_follow_the_formula_on_both_sides() {
    for device in devices() {
        for (decay, clip) in [(0.0, 0.0), (0.1, 0.0), (0.1, 0.5), (0.0, 100.0)] {
            let mut state = AdamState::new(&device.tensor([5], &W));
            for g in G {
                let g = device.tensor([5], &g);
                adam(&mut state, &g, &sum_of_squares(&[&g]), &step(decay, clip));
            }
            let w = state.w.to_f64().expect("the device works");
            let bound = if device.gpu().is_some() { 2e-6 } else { 1e-12 };
            for (got, want) in w.iter().zip(expected(decay, clip)) {
                assert!((got - want).abs() <= bound * want.abs().max(1.0), "{decay} {clip}: {got} {want}");
            }
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    for device in devices() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut state = AdamState::new(&device.tensor([5], &W));
            let g = device.tensor([5], &[0.1, broken, 0.0, 0.0, 0.0]);
            adam(&mut state, &g, &sum_of_squares(&[&g]), &step(0.0, 2.0));
            assert_eq!(state.w.to_vec().expect("the device works"), W);
            assert_eq!(state.m.to_vec().expect("the device works"), [0.0; 5]);
        }
    }
}
