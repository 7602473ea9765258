//! The cases of attention: of two sequences, of one over itself, and inside windows.

use super::Window;
use crate::ops::registry::{Case, Values, case, sums};
use crate::tensor::Tensor;

pub(in crate::ops) fn cases() -> Vec<Case> {
    let plain: fn(&[Tensor]) -> Tensor = |x| x[0].attention(&x[1], &x[2], 4, 0.35, None);
    let masked: fn(&[Tensor]) -> Tensor =
        |x| x[0].attention(&x[1], &x[2], 2, 0.35, Some(&x[3].map(|m| (m - 1.0) * 1e30)));
    let (q, k): (&[usize], &[usize]) = (&[6, 36, 32], &[6, 12, 32]);
    vec![
        case("attention", "eight channels a head", &[q, k, k], sums(36), plain).bench(),
        case(
            "attention",
            "sixteen channels a head",
            &[&[2, 37, 64], &[2, 33, 64], &[2, 33, 64]],
            sums(64),
            plain,
        ),
        case(
            "attention",
            "twelve channels a head",
            &[&[2, 7, 48], &[2, 5, 48], &[2, 5, 48]],
            sums(48),
            plain,
        ),
        case(
            "attention",
            "more keys than are held",
            &[&[1, 9, 16], &[1, 45, 16], &[1, 45, 16]],
            sums(45),
            plain,
        ),
        case("attention", "one query, one key", &[&[2, 1, 16], &[2, 1, 16], &[2, 1, 16]], sums(16), plain),
        case(
            "attention",
            "keys left out",
            &[&[6, 9, 64], &[6, 10, 64], &[6, 10, 64], &[3, 10]],
            sums(64),
            masked,
        )
        .with(3, Values::Whole(2)),
        case(
            "attention",
            "heads of odd width, keys left out",
            &[&[4, 5, 14], &[4, 3, 14], &[4, 3, 14], &[2, 3]],
            sums(14),
            masked,
        )
        .with(3, Values::Whole(2)),
        case("attention", "of a sequence over itself", &[&[6, 13, 96]], sums(32), |x| {
            x[0].self_attention(4, 0.35, None, None, None)
        }),
        case(
            "attention",
            "over itself, keys left out, added",
            &[&[6, 10, 96], &[3, 10], &[6, 10, 32]],
            sums(32),
            |x| x[0].self_attention(2, 0.35, Some(&x[1].map(|m| (m - 1.0) * 1e30)), Some(&x[2]), None),
        )
        .with(1, Values::Whole(2)),
        case(
            "attention",
            "over itself, heads of odd width, added",
            &[&[4, 5, 42], &[4, 5, 14]],
            sums(14),
            |x| x[0].self_attention(2, 0.35, None, Some(&x[1]), None),
        ),
        case("attention", "large scores", &[&[2, 9, 16], &[2, 6, 16], &[2, 6, 16]], sums(16), |x| {
            x[0].map(|x| x * 1e-2).attention(&x[1].map(|x| x * 1e-4), &x[2].map(|x| x * 1e-4), 4, 1.0, None)
        })
        .all(Values::Extreme),
        case(
            "attention",
            "in windows, rolled, a bias for each",
            &[&[2, 36, 48], &[4, 2, 9, 9]],
            sums(32),
            |x| x[0].window_attention(Window { grid: 6, size: 3, shift: 1 }, 2, 0.35, &x[1]),
        ),
        case("attention", "in windows, heads of Swin", &[&[2, 196, 192], &[1, 2, 49, 49]], sums(98), |x| {
            x[0].window_attention(Window { grid: 14, size: 7, shift: 3 }, 2, 0.18, &x[1])
        })
        .bench(),
        case("attention", "in windows, heads of odd width", &[&[2, 16, 18], &[4, 2, 4, 4]], sums(16), |x| {
            x[0].window_attention(Window { grid: 4, size: 2, shift: 1 }, 2, 0.35, &x[1])
        }),
        case("attention", "BERT's heads", &[&[2, 5, 384], &[2, 5, 128]], sums(64), |x| {
            x[0].self_attention(2, 0.125, None, Some(&x[1]), None)
        }),
        case("attention", "weights dropped out, BERT's heads", &[&[3, 11, 384], &[3, 11]], sums(64), |x| {
            let hidden = x[1].map(|m| (m - 1.0) * 1e30);
            x[0].self_attention(2, 0.125, Some(&hidden), None, Some((0.1, 0x1234_5678_9abc)))
        })
        .with(1, Values::Whole(2)),
        case("attention", "weights dropped out, added", &[&[2, 45, 96], &[2, 45, 32]], sums(45), |x| {
            x[0].self_attention(2, 0.35, None, Some(&x[1]), Some((0.5, 7)))
        }),
        case("attention", "weights dropped out, few keys", &[&[5, 7, 48]], sums(32), |x| {
            x[0].self_attention(2, 0.35, None, None, Some((0.3, u64::MAX)))
        }),
        case("attention", "weights dropped out, heads of odd width", &[&[4, 5, 42]], sums(14), |x| {
            x[0].self_attention(2, 0.35, None, None, Some((0.3, 9)))
        }),
    ]
}

#[cfg(test)]
mod tests {
    use crate::gpu::{Choices, Gpu, Options, Style};
    use crate::host::{Rng, ratios};
    use crate::ops::materialize;
    use crate::tensor::{Device, Tape, Tensor};

    /// The result and the gradient of queries, keys and values by `attention`.
    fn run(device: &Device, attention: impl Fn(&Tensor, &Tensor) -> Tensor) -> [Vec<f64>; 2] {
        let mut rng = Rng::new(1);
        let mut values = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>();
        let (x, g) = (values(3 * 10 * 96), values(3 * 10 * 32));
        let hidden: Vec<f32> = (0..30).map(|i| if i % 7 == 3 { -10_000.0 } else { 0.0 }).collect();
        let tape = Tape::new();
        let x = tape.leaf(&device.tensor([3, 10, 96], &x));
        let y = attention(&x, &device.tensor([3, 10], &hidden));
        let grads = tape.backward_from(&y, device.tensor(y.shape(), &g));
        [&y, grads.of(&x).expect("it is tracked")].map(|t| t.to_f64().expect("the device works"))
    }

    #[test]
    fn weights_are_dropped_out_as_those_of_the_composition() {
        let seed = 0x9876_5432_1012;
        let fused =
            |x: &Tensor, hidden: &Tensor| x.self_attention(2, 0.25, Some(hidden), None, Some((0.3, seed)));
        let composed = |x: &Tensor, hidden: &Tensor| {
            let [q, k, v] = [0, 1, 2].map(|i| materialize(x.view().slice(2, i * 32, 32)));
            let hidden = hidden.view().repeat(1, 1).repeat(1, 1);
            let scores = q.head_scores(&k, 2, 0.25).map2(hidden, |s, hidden| s + hidden);
            scores.softmax(-1, 1.0).dropout(0.3, seed).head_mix(&v)
        };
        let want = run(&Device::Host, composed);
        let near = |got: [Vec<f64>; 2], bound: f64| {
            got.iter().zip(&want).for_each(|(got, want)| assert!(ratios(got, want).worst() < bound));
        };
        near(run(&Device::Host, fused), 1e-13);
        for style in [None, Some(Style::Direct), Some(Style::Workgroup)] {
            let gpu = Gpu::open(&Options { style, ..Options::default() }).expect("the tests need an adapter");
            near(run(&Device::Gpu(gpu.clone()), composed), 2e-6);
            near(run(&Device::Gpu(gpu), fused), 2e-6);
        }
    }

    #[test]
    fn ways_are_measured_and_remembered_and_the_result_is_the_same() {
        let open = |measure, choices| {
            let options = Options {
                style: Some(Style::Workgroup),
                measure: Some(measure),
                choices,
                ..Options::default()
            };
            Gpu::open(&options).expect("the tests need an adapter")
        };
        let plain = |x: &Tensor, hidden: &Tensor| x.self_attention(2, 0.25, Some(hidden), None, None);
        let measuring = open(true, Choices::default());
        let want = run(&Device::Host, plain);
        let measured = run(&Device::Gpu(measuring.clone()), plain);
        measured.iter().zip(&want).for_each(|(got, want)| assert!(ratios(got, want).worst() < 2e-6));
        let choices = measuring.choices();
        let kernels: Vec<&str> = choices.of.keys().filter_map(|class| class.split(' ').next()).collect();
        assert_eq!(kernels, ["attention", "attention_keys", "attention_queries"]);
        let resumed = open(false, choices.clone());
        assert_eq!(run(&Device::Gpu(resumed.clone()), plain), measured);
        assert_eq!(resumed.choices().of, choices.of);
    }
}
