//! The two encoders (section 3.1 of the paper): a vector for each region and each word.

use super::{Run, graph};
use crate::nn::linear;
use crate::ops::{Act, scaled_sum_of};
use crate::systems::Items;
use crate::tensor::Tensor;

/// Added to a vector's norm.
const EPS: f64 = 1e-8;

fn normalised(x: Tensor, plain: bool) -> Tensor {
    if plain { x } else { x.l2norm_plus(-1, EPS) }
}

/// Encodes features `images [n, regions, img_dim]` with their `bboxes [n, regions, 4]`: `regions [n, regions, embed]`,
/// and of each the `kernels [n, regions, 8]`, what its neighbours weigh in the graph.
pub(super) fn images(run: &Run, x: &Items) -> Items {
    let scope = run.pass.scope.sub("img_enc");
    let mapped = linear(&scope.sub("fc"), x.at("images"), Act::None);
    let regions = normalised(mapped, run.config.options.no_imgnorm);
    run.pass.tap("img_emb", &regions);
    Items::default().with("regions", regions).with("kernels", graph::kernels(run, x.at("bboxes")))
}

/// Encodes captions of ids `captions [n, words]` and their `cap_lens`: `words [n, words, embed]`, 0 past the length, and
/// the `lengths`; in a sparse graph also what a word that depends on itself counts there, `own [n, words]`, from the
/// pairs `depends [n, pairs, 2]` of which `depends_len` count.
pub(super) fn captions(run: &Run, x: &Items) -> Items {
    let options = &run.config.options;
    let scope = run.pass.scope.sub("txt_enc");
    let lengths = x.at("cap_lens");
    let embedded = scope.sub("embed").at("weight").gather(x.at("captions"));
    let states = run.config.gru().run(&scope.sub("rnn"), &embedded, lengths);
    let s = states.shape();
    let mean = if options.bi_gru {
        scaled_sum_of(0.5, vec![states.view()], 2, |x| x[0].clone())
    } else {
        states.reshape([s[0], s[1], s[3]])
    };
    let words = normalised(mean, options.no_txtnorm);
    run.pass.tap("cap_emb", &words);
    let own = graph::own(run, &words, lengths, x);
    let items = Items::default().with("words", words).with("lengths", lengths.clone());
    match own {
        Some(own) => items.with("own", own),
        None => items,
    }
}
