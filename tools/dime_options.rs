//! What an import of DIME needs to know of it: where its checkpoints have their weights, and how their options
//! make a configuration.

use crossweave::data::import::{self, StateDicts};
use crossweave::{Error, Result};
use serde_json::{Map, Value as Json, json};

/// The authors' state dicts.
pub const DICTS: StateDicts<'static> =
    StateDicts { modules: &["img_enc", "txt_enc", "itr_module"], ignored: &[], optional: &[] };

/// The options without which DIME cannot be built, and that no shape tells.
const NEEDED: [&str; 7] = [
    "direction",
    "max_words",
    "num_head_IMRC",
    "raw_feature_norm_CMRC",
    "lambda_softmax_CMRC",
    "use_abs",
    "no_imgnorm",
];

/// The options that a weight's shape tells: the weight and its axis.
const TOLD: [(&str, &str, usize); 4] = [
    ("embed_size", "img_enc.fc.weight", 0),
    ("img_dim", "img_enc.fc.weight", 1),
    ("hid_IMRC", "itr_module.dynamic_itr_l0.imrc.sa.feed_forward_layer.fc1.weight", 0),
    ("hid_router", "itr_module.dynamic_itr_l0.ric.router.mlp.0.weight", 0),
];

/// The configuration: the checkpoint's `opt`, what `given` adds (BERT's configuration or a whole DIME one), what
/// `settings` overrule, and what shapes tell.
pub fn config(
    opt: Option<&Map<String, Json>>,
    given: Option<&Json>,
    settings: &[(String, Json)],
    shape_of: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Result<Json> {
    let mut config = opt.cloned().unwrap_or_default();
    let whole = given.and_then(|given| given.as_object()).filter(|given| given.contains_key("bert_config"));
    for (option, value) in whole.into_iter().flatten() {
        config.entry(option).or_insert_with(|| value.clone());
    }
    if let (Some(bert), None) = (given, whole) {
        config.insert("bert_config".into(), bert.clone());
    }
    config.extend(settings.iter().cloned());
    for (option, weight, axis) in TOLD {
        if let (false, Some(shape)) = (config.contains_key(option), shape_of(weight)) {
            config.insert(option.into(), json!(shape.get(axis)));
        }
    }
    if !config.contains_key("bert_config") {
        let error = Error::new("the configuration of the checkpoint's BERT is not known");
        return Err(error
            .cure("give it: --config bert_config.json (of the folder that --bert_path named in training)"));
    }
    if let Some(option) = NEEDED.iter().find(|option| !config.contains_key(**option)) {
        let error =
            Error::new(format!("the checkpoint's options do not say `{option}`, which no weight tells"));
        return Err(error.cure(format!("give it as it was in training: --set {option}=VALUE")));
    }
    if !matches!(config["direction"].as_str(), Some("i2t" | "t2i")) {
        let error = Error::new("`direction` is unknown").expected("i2t or t2i").found(&config["direction"]);
        return Err(error.cure("give it: --set direction=i2t"));
    }
    config.insert("system".into(), "dime".into());
    let config = Json::Object(config);
    let [width, heads] = [import::size(&config, "embed_size")?, import::size(&config, "num_head_IMRC")?];
    if width % heads != 0 {
        let error = Error::new("`num_head_IMRC` does not divide `embed_size`");
        return Err(error
            .found(format!("{heads} heads, {width} channels"))
            .cure("give it: --set num_head_IMRC=N"));
    }
    Ok(config)
}
