//! Every fresh parameter is drawn as the papers' code draws it: bounds, deviations and constants.

use crossweave::nn::{ParamSpec, Params, Role};
use crossweave::systems::{System, kind};
use crossweave::tensor::Device;
use serde_json::{Value, json};

/// How a parameter is drawn.
#[derive(Clone, Copy, Debug)]
enum Drawn {
    Uniform(f64),
    /// Between 0 and a bound.
    Above(f64),
    Normal(f64),
    Constant(f64),
}
use Drawn::{Above, Constant, Normal, Uniform};

fn bert() -> Value {
    json!({
        "vocab_size": 200, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 96, "max_position_embeddings": 32, "initializer_range": 0.02
    })
}

/// BERT: normal of deviation 0.02, biases 0, norms 1 and 0.
fn of_bert(name: &str) -> Drawn {
    match name {
        n if n.contains("LayerNorm.weight") => Constant(1.0),
        n if n.ends_with("bias") => Constant(0.0),
        _ => Normal(0.02),
    }
}

/// PyTorch's default of linear maps and convolutions: uniform within the inverse root of a unit's inputs, the bias too.
fn linear(specs: &[ParamSpec], name: &str) -> Drawn {
    let weight = format!("{}.weight", name.rsplit_once('.').expect("a module").0);
    let shape = specs.iter().find(|s| s.name == weight).expect("its weight").shape;
    Uniform(1.0 / (shape.dims()[1..].iter().product::<usize>() as f64).sqrt())
}

fn xavier(shape: &[usize]) -> Drawn {
    Uniform((6.0 / (shape[0] + shape[1]) as f64).sqrt())
}

/// `specs/dime.md`: the image map xavier-uniform with bias 0, routers' last biases 1.5, all else PyTorch's defaults.
fn of_dime(specs: &[ParamSpec], spec: &ParamSpec) -> Drawn {
    match spec.name.as_str() {
        n if n.starts_with("txt_enc.bert.") => of_bert(n),
        "img_enc.fc.weight" => xavier(spec.shape.dims()),
        "img_enc.fc.bias" => Constant(0.0),
        n if n.ends_with("router.mlp.2.bias") => Constant(1.5),
        n if n.contains(".bn.weight") => Constant(1.0),
        n if n.contains(".bn.bias") => Constant(0.0),
        n => linear(specs, n),
    }
}

/// `specs/hrem.md`, section 4: the image maps xavier-uniform with zero biases, packed attention maps xavier-uniform, its
/// biases 0, norms 1 and 0, all else PyTorch's defaults.
fn of_hrem(specs: &[ParamSpec], spec: &ParamSpec) -> Drawn {
    match spec.name.as_str() {
        n if n.starts_with("txt_enc.bert.") => of_bert(n),
        n if n.contains(".bns.") || n.contains(".norm") => {
            Constant(f64::from(u8::from(n.ends_with("weight"))))
        }
        n if n.starts_with("img_enc.fc.") && n.ends_with("bias") => Constant(0.0),
        n if n.starts_with("img_enc.fc.") => xavier(spec.shape.dims()),
        n if n.ends_with("in_proj_weight") => xavier(spec.shape.dims()),
        n if n.ends_with("in_proj_bias") || n.ends_with("out_proj.bias") => Constant(0.0),
        n => linear(specs, n),
    }
}

/// `specs/gsmn.md`: the image map xavier-uniform with bias 0, embeddings within 0.1, the GRU within the inverse root of its
/// width, kernels' angles within pi and their other values between 0 and 1, the words' kernels within 1, all else
/// PyTorch's defaults.
fn of_gsmn(specs: &[ParamSpec], spec: &ParamSpec) -> Drawn {
    match spec.name.as_str() {
        "img_enc.fc.weight" => xavier(spec.shape.dims()),
        "img_enc.fc.bias" => Constant(0.0),
        "txt_enc.embed.weight" => Uniform(0.1),
        n if n.starts_with("txt_enc.rnn.") => Uniform(1.0 / 32f64.sqrt()),
        n if n.ends_with("mean_theta") => Uniform(std::f64::consts::PI),
        n if n.contains("mean_") || n.contains("precision_") => Above(1.0),
        n if n.ends_with("params") => Uniform(1.0),
        n if n.contains("conv_weights") => linear(specs, n),
        n if n.ends_with("weight_g") => Above(1.0),
        // Both maps read 24 values.
        _ => Uniform(1.0 / 24f64.sqrt()),
    }
}

/// What is wrong with some values, if they are not drawn so. Of few values only the bound is judged.
fn wrong(values: &[f32], drawn: Drawn) -> Option<String> {
    let n = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    let most = values.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
    let (expected, bound, kurtosis) = match drawn {
        Constant(value) => {
            let all = values.iter().all(|v| f64::from(*v) == value);
            return (!all).then(|| format!("not all {value}"));
        }
        Uniform(bound) => (bound / 3f64.sqrt(), bound, 1.8),
        Above(bound) => {
            let all = values.iter().all(|v| (0.0..=bound).contains(&f64::from(*v)));
            let vary = values.iter().any(|v| *v != values[0]);
            return (!all || !vary).then(|| format!("not all between 0 and {bound}"));
        }
        Normal(deviation) => (deviation, 6.0 * deviation, 3.0),
    };
    if most > bound * (1.0 + 1e-6) {
        return Some(format!("{most} exceeds {bound}"));
    }
    // Five standard errors of a deviation and of a mean.
    let (off, error) = ((deviation - expected).abs(), expected * ((kurtosis - 1.0) / (4.0 * n)).sqrt());
    let few = n < 30.0;
    (!few && (off > 5.0 * error || mean.abs() > 5.0 * expected / n.sqrt()))
        .then(|| format!("deviation {deviation} instead of {expected}, mean {mean}"))
}

fn check(system: &dyn System, rule: fn(&[ParamSpec], &ParamSpec) -> Drawn) {
    let specs = system.parameters();
    let params = Params::begin(&specs, &Device::Host, 7);
    let (mut failures, mut drawn) = (Vec::new(), 0);
    for spec in &specs {
        let values = params.named(&spec.name).to_vec().expect("the host works");
        let expected = match spec.role {
            Role::Statistic => Constant(f64::from(u8::from(spec.name.ends_with("running_var")))),
            Role::Counter => Constant(0.0),
            _ => rule(&specs, spec),
        };
        drawn += usize::from(!matches!(expected, Constant(_)));
        failures.extend(wrong(&values, expected).map(|what| format!("{}: {what}", spec.name)));
    }
    assert!(drawn > 20 && failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn dime_begins_as_published() {
    let config = json!({
        "direction": "i2t", "max_words": 12, "img_dim": 40, "embed_size": 32, "num_head_IMRC": 4, "hid_IMRC": 24,
        "hid_router": 20, "raw_feature_norm_CMRC": "clipped_l2norm", "lambda_softmax_CMRC": 4.0, "use_abs": false,
        "no_imgnorm": false, "bert_config": bert()
    });
    let system = (kind("dime").expect("a system").open)(&config).expect("a configuration");
    check(&*system, of_dime);
    // The three maps of a cell's attention are copies of one.
    let specs = system.parameters();
    let params = Params::begin(&specs, &Device::Host, 7);
    let map = |i: usize| {
        let name = format!("itr_module.dynamic_itr_l0.imrc.sa.att_layer.linears.{i}.weight");
        params.named(&name).to_vec().expect("the host works")
    };
    assert!(map(0) == map(1) && map(1) == map(2));
}

#[test]
fn hrem_begins_as_published() {
    let config = json!({"embed_size": 32, "nhead": 4, "img_dim": 40, "topk": 10, "bert_config": bert()});
    let system = (kind("hrem").expect("a system").open)(&config).expect("a configuration");
    check(&*system, of_hrem);
    let params = Params::begin(&system.parameters(), &Device::Host, 7);
    let map = |name: &str| {
        let name = format!("criterion.adj_model.adj_learning.{name}.0.weight");
        params.named(&name).to_vec().expect("the host works")
    };
    assert_eq!(map("mlp_i2t"), map("mlp_t2i"), "one is a copy of the other");
}

#[test]
fn wrong_draws_are_noticed() {
    let values: Vec<f32> = (0..400).map(|i| (i as f32 - 199.5) / 200.0).collect();
    assert!(wrong(&values, Uniform(1.0)).is_none());
    assert!(wrong(&values, Uniform(0.9)).is_some() && wrong(&values, Uniform(1.2)).is_some());
    assert!(wrong(&values, Normal(1.0)).is_some() && wrong(&values, Constant(0.0)).is_some());
}

#[test]
fn gsmn_begins_as_published() {
    let config = json!({
        "embed_size": 32, "num_block": 4, "feat_dim": 4, "hid_dim": 24, "out_dim": 2, "word_dim": 12, "bi_gru": true,
        "img_dim": 40, "vocab_size": 50
    });
    let system = (kind("gsmn").expect("a system").open)(&config).expect("a configuration");
    check(&*system, of_gsmn);
    let params = Params::begin(&system.parameters(), &Device::Host, 7);
    let values = |name: &str| params.named(name).to_vec().expect("the host works");
    let (lengths, rows) = (values("t2i_match_G.out_1.weight_g"), values("t2i_match_G.out_1.weight_v"));
    for (length, row) in lengths.iter().zip(rows.chunks(24)) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((length - norm).abs() < 1e-6, "a row begins with its own length");
    }
}

/// `specs/hat.md`, sections 1 to 3: Swin's, BERT's and the maps' weights and tables normal of deviation 0.02, biases 0, norms
/// 1 and 0; the patches' convolution is PyTorch's default.
fn of_hat(specs: &[ParamSpec], spec: &ParamSpec) -> Drawn {
    match spec.name.as_str() {
        n if n.starts_with("text_transformer.") => of_bert(n),
        n if n.starts_with("vit_model.patch_embed.proj") => linear(specs, n),
        n if n.contains("norm") => Constant(f64::from(u8::from(n.ends_with("weight")))),
        n if n.ends_with(".bias") => Constant(0.0),
        _ => Normal(0.02),
    }
}

#[test]
fn hat_begins_as_published() {
    let mut text = bert();
    text["num_hidden_layers"] = 10.into();
    let config = json!({
        "direction": "i2t", "hidden_size": 24, "bert_config": text,
        "swin": {"img_size": 64, "embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [2, 4, 4, 8]},
    });
    let system = (kind("hat").expect("a system").open)(&config).expect("a configuration");
    check(&*system, of_hat);
}
