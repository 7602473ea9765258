//! Going on with a run: its options stand in its folder, and those that decide its numbers stay.

use serde_json::Value;

use super::TrainOptions;
use crate::error::{Error, Result};

/// What a resumed run may not change: with another value the losses are no longer those of a run never stopped.
const FIXED: [&str; 37] = [
    "system",
    "seed",
    "faithful",
    "captions_per_image",
    "max_words",
    "extra_stc",
    "extra_img",
    "batch_size",
    "margin",
    "max_violation",
    "no_max_violation",
    "trade_off",
    "embed_size",
    "direction",
    "use_abs",
    "no_imgnorm",
    "num_head_IMRC",
    "hid_IMRC",
    "hid_router",
    "raw_feature_norm_CMRC",
    "lambda_softmax_CMRC",
    "bert_init",
    "bert_config",
    "bert_layers",
    "bert_hidden",
    "bert_heads",
    "bert_intermediate",
    "vocab_size",
    "finetune_bert",
    "cache_text",
    "bert_dropout",
    "dev_limit",
    "select",
    "mask_padding",
    "precision",
    "tile",
    "checkpoint_cells",
];

impl TrainOptions {
    /// Checks that these options go on with the run that was begun with those (a `config.json`'s `options`).
    ///
    /// # Errors
    /// Options that differ where a resumed run has no choice, all of them named.
    pub fn goes_on(&self, begun: &Value) -> Result<()> {
        let own = serde_json::to_value(self).expect("options are plain data");
        let changed = |name: &&&str| begun.get(**name).is_some_and(|before| *before != own[**name]);
        let names: Vec<&str> = FIXED.iter().filter(changed).copied().collect();
        if names.is_empty() {
            return Ok(());
        }
        let list = |of: &Value| {
            let row = |name: &&str| format!("--{name} {}", of[*name].to_string().trim_matches('"'));
            names.iter().map(row).collect::<Vec<_>>().join(", ")
        };
        Err(Error::new("the run was begun with other options")
            .expected(list(begun))
            .found(list(&own))
            .cure("leave these options out to go on with the run, or begin a new one"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> TrainOptions {
        let args: Vec<&str> = line.split_whitespace().collect();
        TrainOptions::of(&args).and_then(TrainOptions::resolve).expect("legal").0
    }

    #[test]
    fn every_fixed_name_is_an_option() {
        let value = serde_json::to_value(TrainOptions::default()).expect("plain data");
        for name in FIXED {
            assert!(value.get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_numbers_of_a_run_stay_and_its_length_may_change() {
        let begun = serde_json::to_value(of("--seed 3")).expect("plain data");
        let longer =
            of("--seed 3 --num_epochs 9 --learning_rate 1e-5 --log_step 1 --val_step 7 --max-steps 5");
        longer.goes_on(&begun).expect("more of the same");
        let other = of("--seed 4 --direction t2i --precision f16");
        let error = other.goes_on(&begun).expect_err("another run").to_string();
        assert!(error.contains("expected: --seed 3, --direction i2t, --precision f32"), "{error}");
        assert!(error.contains("found: --seed 4, --direction t2i, --precision f16"), "{error}");
    }
}
