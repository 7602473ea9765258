//! Authors' checkpoints of any system, and image encoders: where a system has its weights and how its options make a
//! configuration is in its folder, how files are read in [`crate::data::import`].

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::model::saved;
use crate::data::import::{self, Imported, Source, StateDicts};
use crate::error::{Error, Result};
use crate::nn::{ParamSpec, bert, shapes, swin};
use crate::systems::{BERT, Checkpoint, Kind, Text};

/// A system's weights and configuration: the options beside the weights, which `given` (BERT's configuration, or a
/// whole one of the system) adds to and `settings` overrule.
///
/// # Errors
/// A file of another model, an option that nothing tells, weights that do not fit the configuration.
pub fn system<'a>(
    kind: Kind,
    source: &'a Source,
    given: Option<&Json>,
    settings: &[(String, Json)],
) -> Result<Imported<'a>> {
    let dicts = StateDicts { modules: kind.modules, ignored: &[], optional: &[] };
    let config = |opt: Option<&Map<String, Json>>, shape: &dyn Fn(&str) -> Option<Vec<usize>>| {
        let mut options = opt.cloned().unwrap_or_default();
        let is_whole = |given: &&Map<String, Json>| kind.text == Text::Words || given.contains_key(BERT);
        let whole = given.and_then(Json::as_object).filter(is_whole);
        for (option, value) in whole.into_iter().flatten() {
            options.entry(option).or_insert_with(|| value.clone());
        }
        if let Some(bert) = options.get(BERT).or(given) {
            bert::check_family(bert)?;
        }
        if let (Some(bert), None) = (given, whole) {
            options.insert(BERT.into(), bert.clone());
        }
        options.extend(settings.iter().cloned());
        let mut config = (kind.import)(Checkpoint { options, text: kind.text, shape })?;
        config["system"] = kind.name.into();
        settings.iter().try_for_each(|setting| is_heeded(kind, setting, &config))?;
        Ok(config)
    };
    let layout = |config: &Json| {
        let specs: Vec<ParamSpec> = saved((kind.open)(config)?.parameters()).collect();
        Ok(shapes(&specs))
    };
    import::model(source, &dicts, config, layout)
}

/// A Swin's weights, and the configuration that their shapes tell.
///
/// # Errors
/// A file of another model, weights that do not fit each other.
pub fn swin(source: &Source) -> Result<Imported<'_>> {
    let config = |shape: &dyn Fn(&str) -> Option<Vec<usize>>| {
        let config = swin::Config::of_shapes(shape)?;
        let mut json = json!(config);
        // For whoever else opens the folder.
        json["model_type"] = "swin".into();
        json["window_size"] = config.window().into();
        Ok(json)
    };
    let layout = |json: &Json| {
        let config = swin::Config::deserialize(json);
        let config = config.map_err(|e| Error::new(format!("the configuration is not understood: {e}")))?;
        Ok(shapes(&config.parameters("")))
    };
    import::swin(source, config, layout)
}

/// Whether a setting is an option of the system, and what the weights leave open.
fn is_heeded(kind: Kind, (name, value): &(String, Json), config: &Json) -> Result<()> {
    let option =
        || (kind.augment)(clap::Command::new("")).get_arguments().any(|arg| arg.get_id() == name.as_str());
    if !option() && (kind.open)(config)?.config().get(name).is_none() {
        return Err(Error::new(format!("--set {name}: {} has no such option", kind.name))
            .cure(format!("`crossweave train --system {} --help` lists those that there are", kind.name)));
    }
    if config[name] == *value {
        return Ok(());
    }
    Err(Error::new(format!("--set {name}: the weights say otherwise"))
        .expected(&config[name])
        .found(value)
        .cure("leave it out"))
}
