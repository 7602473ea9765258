//! Names and shapes of the weights that a BERT encoder and DIME have, computed from their configurations.

use crate::{Error, Result};
use serde_json::Value as Json;

/// A weight's name and shape.
pub type Layout = Vec<(String, Vec<usize>)>;

/// The largest size a configuration can name.
const MAX_SIZE: u64 = 1 << 24;

/// What `bert_config.json` (or a `config.json` of the family) asks for, without prefix, the pooler last.
pub fn bert_parameters(config: &Json) -> Result<Layout> {
    let width = size(config, "hidden_size")?;
    let inner = size(config, "intermediate_size")?;
    let layers = size(config, "num_hidden_layers")?;
    let heads = size(config, "num_attention_heads")?;
    if layers > 1000 || width % heads != 0 {
        let error = Error::new("the BERT configuration contradicts itself");
        let found = format!("hidden_size {width}, num_attention_heads {heads}, num_hidden_layers {layers}");
        return Err(error.expected("heads that divide the width, at most 1000 layers").found(found));
    }
    let mut layout = Layout::new();
    for (table, rows) in
        [("word", "vocab_size"), ("position", "max_position_embeddings"), ("token_type", "type_vocab_size")]
    {
        layout.push((format!("embeddings.{table}_embeddings.weight"), vec![size(config, rows)?, width]));
    }
    norm(&mut layout, "embeddings.LayerNorm", width);
    for layer in 0..layers {
        let at = format!("encoder.layer.{layer}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            linear(&mut layout, &format!("{at}.attention.{part}"), width, width);
        }
        norm(&mut layout, &format!("{at}.attention.output.LayerNorm"), width);
        linear(&mut layout, &format!("{at}.intermediate.dense"), width, inner);
        linear(&mut layout, &format!("{at}.output.dense"), inner, width);
        norm(&mut layout, &format!("{at}.output.LayerNorm"), width);
    }
    linear(&mut layout, "pooler.dense", width, width);
    Ok(layout)
}

/// What DIME has for the authors' options with `bert_config` beside them, under its sub-modules' names.
pub fn dime_parameters(config: &Json) -> Result<Layout> {
    let width = size(config, "embed_size")?;
    let bert = config.get("bert_config").unwrap_or(&Json::Null);
    let hidden = size(bert, "hidden_size")?;
    let mut layout = Layout::new();
    linear(&mut layout, "img_enc.fc", size(config, "img_dim")?, width);
    batch_norm(&mut layout, "img_enc.bn", width);
    let encoder = bert_parameters(bert)?;
    layout.extend(encoder.into_iter().map(|(name, shape)| (format!("txt_enc.bert.{name}"), shape)));
    linear(&mut layout, "txt_enc.fc", hidden, width);
    for words in 1..=3 {
        let conv = format!("txt_enc.convs1.{}", words - 1);
        layout.push((format!("{conv}.weight"), vec![width, 1, words, hidden]));
        layout.push((format!("{conv}.bias"), vec![width]));
    }
    linear(&mut layout, "txt_enc.mapping", 3 * width, width);
    for (layer, paths) in [4, 4, 1].into_iter().enumerate() {
        cells(&mut layout, &format!("itr_module.dynamic_itr_l{layer}"), config, paths)?;
    }
    // Two layers of 4 x 4 paths and one of 4.
    linear(&mut layout, "itr_module.path_mapping", 36, path_hid(config)?);
    batch_norm(&mut layout, "itr_module.bn", width);
    Ok(layout)
}

/// The width of the path embedding: 128 in the authors' code, which has no option for it.
fn path_hid(config: &Json) -> Result<usize> {
    if config.get("path_hid").is_some() { size(config, "path_hid") } else { Ok(128) }
}

fn cells(layout: &mut Layout, at: &str, config: &Json, paths: usize) -> Result<()> {
    let (width, router) = (size(config, "embed_size")?, size(config, "hid_router")?);
    let inner = size(config, "hid_IMRC")?;
    for cell in ["ric", "glgc", "imrc", "cmrc"] {
        linear(layout, &format!("{at}.{cell}.router.mlp.0"), width, router);
        linear(layout, &format!("{at}.{cell}.router.mlp.2"), router, paths);
    }
    for i in 0..3 {
        linear(layout, &format!("{at}.imrc.sa.att_layer.linears.{i}"), width, width);
    }
    linear(layout, &format!("{at}.imrc.sa.feed_forward_layer.fc1"), width, inner);
    linear(layout, &format!("{at}.imrc.sa.feed_forward_layer.fc2"), inner, width);
    for map in ["glgc.fc_1", "glgc.fc_2", "cmrc.refine.fc_scale", "cmrc.refine.fc_shift"] {
        linear(layout, &format!("{at}.{map}"), width, width);
    }
    for map in ["cmrc.refine.fc_1", "cmrc.refine.fc_2"] {
        linear(layout, &format!("{at}.{map}"), width, width);
    }
    Ok(())
}

fn linear(layout: &mut Layout, at: &str, from: usize, to: usize) {
    layout.push((format!("{at}.weight"), vec![to, from]));
    layout.push((format!("{at}.bias"), vec![to]));
}

fn norm(layout: &mut Layout, at: &str, width: usize) {
    layout.push((format!("{at}.weight"), vec![width]));
    layout.push((format!("{at}.bias"), vec![width]));
}

fn batch_norm(layout: &mut Layout, at: &str, width: usize) {
    norm(layout, at, width);
    layout.push((format!("{at}.running_mean"), vec![width]));
    layout.push((format!("{at}.running_var"), vec![width]));
    layout.push((format!("{at}.num_batches_tracked"), vec![]));
}

/// A size of a configuration: a whole number from 1.
pub(crate) fn size(config: &Json, option: &str) -> Result<usize> {
    let value = config.get(option).unwrap_or(&Json::Null);
    let size = value.as_u64().filter(|n| (1..=MAX_SIZE).contains(n));
    size.map(|n| n as usize).ok_or_else(|| {
        let error = Error::new(format!("`{option}` is not known, or no size"));
        let found = if value.is_null() { "nothing".to_string() } else { value.to_string() };
        error.expected(format!("a whole number from 1 to {MAX_SIZE}")).found(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::weights::{self, Weights};
    use std::path::Path;

    #[test]
    fn dime_has_what_the_authors_checkpoint_holds() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let held = Weights::open(&fixtures.join("ckpt_expected.safetensors")).expect("the fixture");
        let spec: Json = serde_json::from_str(&held.metadata()["spec"]).expect("its spec");
        let mut config = spec["config"]["opt"].clone();
        config["bert_config"] = spec["config"]["bert_config"].clone();
        let layout = dime_parameters(&config).expect("a layout");
        let names = held.shapes().map(|(name, shape)| (name.trim_start_matches("param."), shape));
        weights::check("fixture", &layout, names).expect("the same names and shapes");
        config["embed_size"] = 9.into();
        let names = held.shapes().map(|(name, shape)| (name.trim_start_matches("param."), shape));
        let error = weights::check("fixture", &dime_parameters(&config).expect("a layout"), names);
        let text = error.expect_err("another width").to_string();
        assert!(text.contains("wrong shape: img_enc.fc.weight is [8, 14], expected [9, 14]"), "{text}");
        assert!(text.contains("more"), "{text}");
    }

    #[test]
    fn a_missing_size_is_named() {
        let error = bert_parameters(&serde_json::json!({"hidden_size": 12})).expect_err("sizes missing");
        assert!(error.to_string().contains("intermediate_size"), "{error}");
    }
}
