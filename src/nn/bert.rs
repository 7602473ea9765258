//! The BERT encoder (Devlin et al. 2019) as its PyTorch ports compute it: post-norm layers, exact-erf GELU,
//! an additive attention mask.

use serde::{Deserialize, Serialize};

use super::params::{Init, Layout, ParamSpec, Role, Scope, layout};
use super::{Dropouts, add_norm, layer_norm, linear, linear_plus, linears, mlp};
use crate::error::{Error, Result};
use crate::ops::{Act, map};
use crate::tensor::Tensor;

/// Layers and sizes past which a configuration is a slip or hostile: its parameters could not even be listed.
const MAX_LAYERS: usize = 1000;
const MAX_SIZE: usize = 1 << 24;
/// What the exact gelu is called.
const EXACT_GELU: [&str; 2] = ["gelu", "gelu (erf)"];

/// `bert_config.json`, or a `config.json` of the family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of attention; they divide the width.
    pub num_attention_heads: usize,
    /// Width between a layer's two linear maps.
    pub intermediate_size: usize,
    /// Only the exact gelu.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// Dropout of outputs and embeddings.
    #[serde(default)]
    pub hidden_dropout_prob: f32,
    /// Dropout of attention weights.
    #[serde(default)]
    pub attention_probs_dropout_prob: f32,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the token type table.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// Deviation of random beginnings.
    #[serde(default = "deviation")]
    pub initializer_range: f64,
    /// Epsilon of layer norms.
    #[serde(default = "tiny")]
    pub layer_norm_eps: f64,
}

fn gelu() -> String {
    "gelu".into()
}

fn two() -> usize {
    2
}

fn deviation() -> f64 {
    0.02
}

fn tiny() -> f64 {
    1e-12
}

/// Whether a configuration is one of BERT's own form: others share its names and not its maths.
///
/// # Errors
/// It says that it is not.
pub fn check_family(json: &serde_json::Value) -> Result<()> {
    for (option, wanted) in [("model_type", "bert"), ("position_embedding_type", "absolute")] {
        if let Some(found) = json[option].as_str().filter(|found| *found != wanted) {
            return Err(Error::new("this is the configuration of another family of encoders")
                .expected(format!("{option} {wanted}"))
                .found(format!("{option} {found}"))
                .cure("give a BERT: bert-base-uncased, say"));
        }
    }
    Ok(())
}

impl Config {
    /// Whether the sizes make an encoder.
    ///
    /// # Errors
    /// Names what contradicts.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str, found: String| Err(Error::new(what).at("BERT configuration").found(found));
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.num_attention_heads,
            self.intermediate_size,
            self.max_position_embeddings,
            self.type_vocab_size,
        ];
        if sizes.contains(&0) {
            return wrong("a size is zero", format!("{self:?}"));
        }
        if self.num_hidden_layers > MAX_LAYERS || sizes.iter().any(|n| *n > MAX_SIZE) {
            return wrong("a size is too large for any encoder", format!("{self:?}"));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return wrong(
                "the heads do not divide the width",
                format!("hidden_size {}, num_attention_heads {}", self.hidden_size, self.num_attention_heads),
            );
        }
        if !EXACT_GELU.contains(&self.hidden_act.as_str()) {
            return wrong("only the exact gelu is known", format!("hidden_act {}", self.hidden_act));
        }
        Ok(())
    }

    /// Reads a configuration and checks it.
    ///
    /// # Errors
    /// An option that is missing or of another type, and as [`Config::check`].
    pub fn read(json: &serde_json::Value) -> Result<Self> {
        check_family(json)?;
        let config = Self::deserialize(json)
            .map_err(|e| Error::new(format!("the BERT configuration is not understood: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// The encoder's parameters, their names after `prefix`, in the order of the original state dict; their group is "bert".
    pub fn parameters(&self, prefix: &str) -> Vec<ParamSpec> {
        layout(|l| l.group("bert", |l| self.list(l, prefix)))
    }

    fn list(&self, l: &mut Layout, prefix: &str) {
        let width = self.hidden_size;
        for (table, rows) in [
            ("word_embeddings", self.vocab_size),
            ("position_embeddings", self.max_position_embeddings),
            ("token_type_embeddings", self.type_vocab_size),
        ] {
            let name = format!("{prefix}embeddings.{table}.weight");
            l.push(name, &[rows, width], Init::Normal(self.initializer_range), Role::Encoder);
        }
        self.norm(l, &format!("{prefix}embeddings.LayerNorm"));
        for i in 0..self.num_hidden_layers {
            let at = format!("{prefix}encoder.layer.{i}");
            let own = format!("{at}.attention.self");
            l.together(&own, |l| {
                ["query", "key", "value"]
                    .iter()
                    .for_each(|m| self.dense(l, &format!("{own}.{m}"), width, width));
            });
            self.dense(l, &format!("{at}.attention.output.dense"), width, width);
            self.norm(l, &format!("{at}.attention.output.LayerNorm"));
            self.dense(l, &format!("{at}.intermediate.dense"), width, self.intermediate_size);
            self.dense(l, &format!("{at}.output.dense"), self.intermediate_size, width);
            self.norm(l, &format!("{at}.output.LayerNorm"));
        }
        self.dense(l, &format!("{prefix}pooler.dense"), width, width);
    }

    fn dense(&self, l: &mut Layout, at: &str, from: usize, to: usize) {
        l.push(format!("{at}.weight"), &[to, from], Init::Normal(self.initializer_range), Role::Encoder);
        l.push(format!("{at}.bias"), &[to], Init::Const(0.0), Role::Encoder);
    }

    fn norm(&self, l: &mut Layout, at: &str) {
        l.push(format!("{at}.weight"), &[self.hidden_size], Init::Const(1.0), Role::Encoder);
        l.push(format!("{at}.bias"), &[self.hidden_size], Init::Const(0.0), Role::Encoder);
    }
}

/// A batch of token rows, whole numbers as floats, all `[captions, words]`.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Token ids.
    pub ids: Tensor,
    /// 1 for a token, 0 for padding.
    pub mask: Tensor,
    /// Token types; `None` means all 0.
    pub types: Option<Tensor>,
}

/// Every state of the encoder, each `[captions, words, hidden]`.
pub struct States {
    /// The sum of the tables, normalised.
    pub embeddings: Tensor,
    /// Each layer's output.
    pub layers: Vec<Tensor>,
}

impl States {
    /// The last layer's output.
    pub fn last(&self) -> &Tensor {
        self.layers.last().unwrap_or(&self.embeddings)
    }

    /// `tanh` of the pooler's map of the first token, `[captions, hidden]`.
    pub fn pooled(&self, scope: &Scope) -> Tensor {
        let x = self.last();
        let first = crate::ops::materialize(x.view().slice(1, 0, 1).squeeze(1));
        linear(&scope.sub("pooler").sub("dense"), &first, Act::Tanh)
    }
}

/// Runs the encoder. Padded positions have outputs of their own; they are only masked as keys.
pub fn encode(scope: &Scope, config: &Config, tokens: &Tokens, dropouts: Option<&Dropouts>) -> States {
    let rates = [config.hidden_dropout_prob, config.attention_probs_dropout_prob];
    let dropouts = dropouts.filter(|_| rates.iter().any(|rate| *rate > 0.0));
    let drop = |x: Tensor, rate: f32| match dropouts {
        Some(d) => d.apply(&x, rate),
        None => x,
    };
    let tables = scope.sub("embeddings");
    let words = tables.at("word_embeddings.weight").gather(&tokens.ids);
    let length = words.shape()[1];
    let positions = tables.at("position_embeddings.weight").view().slice(0, 0, length);
    let types = match &tokens.types {
        Some(types) => tables.at("token_type_embeddings.weight").gather(types).view(),
        None => tables.at("token_type_embeddings.weight").view().slice(0, 0, 1),
    };
    let sum = map(vec![words.view(), positions, types], |x| &x[0] + &x[1] + &x[2]);
    let embeddings =
        drop(layer_norm(&tables.sub("LayerNorm"), &sum, config.layer_norm_eps), config.hidden_dropout_prob);
    let masked = tokens.mask.map(|m| (1.0 - m.clone()) * -10_000.0);
    let mut states = States { embeddings, layers: Vec::new() };
    for i in 0..config.num_hidden_layers {
        let x = states.last();
        let at = scope.sub(&format!("encoder.layer.{i}"));
        let own = at.sub("attention.self");
        let maps = ["query", "key", "value"].map(|name| own.sub(name));
        let heads = config.num_attention_heads;
        let scale = 1.0 / ((config.hidden_size / heads) as f64).sqrt();
        let dropout = dropouts.map(|d| (config.attention_probs_dropout_prob, d.draw()));
        let mixed = linears(&maps).concat(x).self_attention(heads, scale, Some(&masked), None, dropout);
        let ends = |name: &str, x: &Tensor, branch: &dyn Fn(&Scope, Option<&Tensor>) -> Tensor| {
            let [map, norm] = ["dense", "LayerNorm"].map(|part| at.sub(name).sub(part));
            let dropout = dropouts.map(|d| (d, config.hidden_dropout_prob));
            add_norm(&norm, x, dropout, config.layer_norm_eps, |residual| branch(&map, residual))
        };
        let x = ends("attention.output", x, &|map, residual| linear_plus(map, &mixed, residual));
        let first = at.sub("intermediate.dense");
        let y = ends("output", &x, &|map, residual| mlp(&first, Act::Gelu, map, &x, residual));
        states.layers.push(y);
    }
    states
}
