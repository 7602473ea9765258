//! What options mean together: contradictions, what follows from `--faithful`, and what does nothing.

use super::{BertDropout, BertInit, Select, TrainOptions, both_spellings};
use crate::error::{Error, Result};

/// Captions that the authors' validation uses at most.
const THEIR_DEV: usize = 5000;
/// The norms of cross-modal attention that work in the authors' code.
const NORMS: [&str; 5] = ["clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"];
/// What a vocabulary needs besides `[PAD] [UNK] [CLS] [SEP]`: something to say.
const LEAST_VOCAB: usize = 5;
/// Sizes past this are slips, and their products would overflow.
const LARGEST: usize = 1 << 20;

impl Default for TrainOptions {
    fn default() -> Self {
        Self::of(&[]).expect("the options' own defaults parse")
    }
}

fn clash(one: &str, other: &str, why: &str) -> Error {
    Error::new(format!("{one} contradicts {other}: {why}")).cure(format!("leave out {one} or {other}"))
}

impl TrainOptions {
    /// The options that these arguments ask for.
    ///
    /// # Errors
    /// An unknown option or a value that does not parse.
    pub fn of(args: &[&str]) -> Result<Self> {
        let command = <Self as clap::Args>::augment_args(clap::Command::new("train").no_binary_name(true));
        let matches = both_spellings(command)
            .args_override_self(true)
            .infer_long_args(true)
            .try_get_matches_from(args)
            .and_then(|matches| <Self as clap::FromArgMatches>::from_arg_matches(&matches));
        matches.map_err(|e| Error::new(e.to_string().trim().trim_start_matches("error: ").to_owned()))
    }

    /// Checks the options against each other and fills in what `--faithful`, or its absence, decides:
    /// `bert_dropout` and `select` are `Some` afterwards. The second part warns, a line each, of options that do
    /// nothing. Resolving twice changes nothing.
    ///
    /// # Errors
    /// Options that contradict each other, and values that make no model.
    pub fn resolve(mut self) -> Result<(Self, Vec<String>)> {
        self.check_sizes()?;
        self.check_numbers()?;
        self.check_norm()?;
        self.check_extras()?;
        self.check_faithful()?;
        self.check_text()?;
        let warnings = self.warnings();
        if self.extra_stc > 0 {
            self.extra_img = 0;
        }
        (self.drop, self.measure) = (None, None);
        (self.finetune, self.use_restval, self.reset_train) = (false, false, false);
        self.max_violation = !self.no_max_violation;
        if self.faithful {
            self.bert_dropout.get_or_insert(BertDropout::Auto);
            self.select.get_or_insert(Select::R1r5);
            self.dev_limit.get_or_insert(THEIR_DEV);
        }
        self.bert_dropout.get_or_insert(BertDropout::None);
        self.select.get_or_insert(Select::Rsum);
        Ok((self, warnings))
    }

    fn check_sizes(&self) -> Result<()> {
        let sizes = [
            ("max_words", Some(self.max_words), 3),
            ("extra_stc", Some(self.extra_stc), 0),
            ("extra_img", Some(self.extra_img), 0),
            ("num_epochs", Some(self.num_epochs), 1),
            ("batch_size", Some(self.batch_size), 1),
            ("lr_update", Some(self.lr_update), 1),
            ("img_dim", self.img_dim, 1),
            ("embed_size", Some(self.embed_size), 1),
            ("log_step", Some(self.log_step), 1),
            ("val_step", Some(self.val_step), 1),
            ("num_head_IMRC", Some(self.num_head_IMRC), 1),
            ("hid_IMRC", Some(self.hid_IMRC), 1),
            ("hid_router", Some(self.hid_router), 1),
            ("workers", Some(self.workers), 0),
            ("captions-per-image", self.captions_per_image, 1),
            ("bert-layers", self.bert_layers, 1),
            ("bert-hidden", self.bert_hidden, 1),
            ("bert-heads", self.bert_heads, 1),
            ("bert-intermediate", self.bert_intermediate, 1),
            ("vocab-size", self.vocab_size, LEAST_VOCAB),
            ("dev-limit", self.dev_limit, 1),
            ("tile", self.tile, 1),
        ];
        for (name, value, least) in sizes {
            if value.is_some_and(|n| n < least || n > LARGEST) {
                return Err(Error::new("the number is out of range")
                    .at(format!("--{name}"))
                    .expected(format!("{least} to {LARGEST}"))
                    .found(value.unwrap_or_default()));
            }
        }
        if self.max_steps == Some(0) {
            return Err(Error::new("there is nothing to train")
                .at("--max-steps")
                .expected("at least 1")
                .found(0));
        }
        let heads = [
            ("num_head_IMRC", self.num_head_IMRC, "embed_size", self.embed_size),
            ("bert-heads", self.bert_heads.unwrap_or(1), "bert-hidden", self.bert_hidden.unwrap_or(0)),
        ];
        for (heads_name, heads, width_name, width) in heads {
            if !width.is_multiple_of(heads) {
                return Err(Error::new("the heads do not divide the width")
                    .at(format!("--{heads_name}, --{width_name}"))
                    .expected(format!("--{heads_name} to be a divisor of --{width_name} {width}"))
                    .found(heads));
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        let positive = [("learning_rate", Some(self.learning_rate)), ("time-limit", self.time_limit)];
        let any = [
            ("grad_clip", self.grad_clip),
            ("margin", self.margin),
            ("trade_off", self.trade_off),
            ("lambda_softmax_CMRC", self.lambda_softmax_CMRC),
        ];
        let wrong_sign = positive.into_iter().find_map(|(name, value)| {
            let value = value.filter(|v| !(v.is_finite() && *v > 0.0))?;
            Some((name, value, "a number above 0"))
        });
        let no_number = any.into_iter().find(|(_, v)| !v.is_finite()).map(|(name, v)| (name, v, "a number"));
        if let Some((name, value, expected)) = wrong_sign.or(no_number) {
            return Err(Error::new("the number is out of range")
                .at(format!("--{name}"))
                .expected(expected)
                .found(value));
        }
        Ok(())
    }

    fn check_norm(&self) -> Result<()> {
        let norm = self.raw_feature_norm_CMRC.as_str();
        if NORMS.contains(&norm) {
            return Ok(());
        }
        let what = match norm {
            "l1norm" | "clipped_l1norm" => "the authors' code offers this attention norm but stops at it",
            _ => "no such attention norm",
        };
        Err(Error::new(what).at("--raw_feature_norm_CMRC").expected(NORMS.join(", ")).found(norm))
    }

    /// The path loss compares the side that travels with the captions' labels one by one.
    fn check_extras(&self) -> Result<()> {
        let (ours, other) = match self.direction.as_str() {
            "t2i" => (self.extra_stc, ("extra_stc", "extra_img")),
            _ if self.extra_stc > 0 => return Ok(()),
            _ => (self.extra_img, ("extra_img", "extra_stc")),
        };
        if ours == 0 {
            return Ok(());
        }
        let (option, direction) = (other.0, &self.direction);
        Err(clash(
            &format!("--{option}"),
            &format!("--direction {direction}"),
            "the path loss has no labels for them, the authors' code stops at it",
        )
        .cure(format!("use --{} with this direction", other.1)))
    }

    fn check_faithful(&self) -> Result<()> {
        let theirs = "--faithful takes the authors' side";
        if self.max_violation && self.no_max_violation {
            return Err(clash("--max_violation", "--no-max-violation", "one of them"));
        }
        let ours = [
            ("--no-max-violation", self.no_max_violation),
            ("--bert-dropout none", self.bert_dropout == Some(BertDropout::None)),
            ("--select rsum", self.select == Some(Select::Rsum)),
            ("--dev-limit", self.dev_limit.is_some_and(|n| n != THEIR_DEV)),
            ("--mask-padding", self.mask_padding),
            ("--cache-text", self.cache_text),
        ];
        match ours.iter().find(|(_, given)| self.faithful && *given) {
            Some(("--cache-text", _)) => Err(clash(
                "--cache-text",
                "--faithful",
                "the authors' BERT has dropout, its states differ each time",
            )),
            Some((option, _)) => Err(clash(option, "--faithful", theirs)),
            None => Ok(()),
        }
    }

    fn check_text(&self) -> Result<()> {
        let random = self.bert_init == BertInit::Random;
        if self.cache_text {
            let why = "cached states are those of a frozen encoder without dropout";
            let against = [
                ("--finetune-bert", self.finetune_bert),
                ("--bert-dropout auto", self.bert_dropout == Some(BertDropout::Auto)),
                ("--bert-init random", random),
            ];
            if let Some((option, _)) = against.iter().find(|(_, given)| *given) {
                return Err(clash("--cache-text", option, why));
            }
        }
        let sizes = [
            ("--bert-layers", self.bert_layers.is_some()),
            ("--bert-hidden", self.bert_hidden.is_some()),
            ("--bert-heads", self.bert_heads.is_some()),
            ("--bert-intermediate", self.bert_intermediate.is_some()),
        ];
        let sized = sizes.iter().find(|(_, given)| *given).map(|(name, _)| *name);
        if let (Some(size), true) = (sized, self.bert_config.is_some()) {
            return Err(clash("--bert-config", size, "the file says the sizes"));
        }
        let of_random = [
            ("--bert-config", self.bert_config.is_some()),
            ("--vocab-size", self.vocab_size.is_some()),
            (sized.unwrap_or_default(), sized.is_some()),
        ];
        match of_random.iter().find(|(_, given)| *given && !random) {
            Some((option, _)) => Err(Error::new(format!("{option} is for a BERT made from random weights"))
                .cure(
                    "add --bert-init random; a pretrained BERT brings its own configuration and vocabulary",
                )),
            None => Ok(()),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let idle = [
            ("--drop", self.drop.is_some()),
            ("--finetune", self.finetune),
            ("--use_restval", self.use_restval),
            ("--measure", self.measure.is_some()),
            ("--reset_train", self.reset_train),
        ];
        let mut warnings: Vec<String> = idle
            .iter()
            .filter(|(_, given)| *given)
            .map(|(option, _)| format!("{option} does nothing: nor does it in the authors' code"))
            .collect();
        if self.extra_stc > 0 && self.extra_img > 0 {
            warnings.push("--extra_img does nothing beside --extra_stc, which wins".into());
        }
        if self.finetune_bert && self.bert_init == BertInit::Random {
            warnings.push("--finetune-bert adds nothing to --bert-init random, which trains BERT".into());
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(args: &str) -> Result<(TrainOptions, Vec<String>)> {
        TrainOptions::of(&args.split_whitespace().collect::<Vec<_>>())?.resolve()
    }

    #[test]
    fn the_authors_command_lines_mean_what_they_did() {
        let line = "--data_path D --data_name f30k_precomp --bert_path B --logger_name runs/x \
                    --direction i2t --extra_stc 1 --lambda_softmax 4";
        let (theirs, warnings) = resolved(line).expect("the README's line");
        assert!(warnings.is_empty());
        assert_eq!((theirs.extra_stc, theirs.lambda_softmax_CMRC), (1, 4.0));
        let (ours, _) = resolved(&line.replace('_', "-").replace("f30k-", "f30k_")).expect("with hyphens");
        assert_eq!(theirs, ours);
        assert!(ours.max_violation && ours.exclude_own());
        let (short, _) = resolved("--learning 0.5 --num_h 8 --hid_r 3").expect("prefixes that are clear");
        assert_eq!((short.learning_rate, short.num_head_IMRC, short.hid_router), (0.5, 8, 3));
    }

    #[test]
    fn faithful_takes_their_side_and_ours_is_the_default() {
        let (theirs, _) = resolved("--faithful").expect("legal");
        assert_eq!(theirs.bert_dropout, Some(BertDropout::Auto));
        assert_eq!((theirs.select, theirs.dev_limit), (Some(Select::R1r5), Some(5000)));
        assert!(!theirs.exclude_own());
        let (ours, _) = TrainOptions::default().resolve().expect("legal");
        assert_eq!((ours.bert_dropout, ours.dev_limit), (Some(BertDropout::None), None));
        assert_eq!(ours.select, Some(Select::Rsum));
        for options in [theirs, ours] {
            assert_eq!(options.clone().resolve().expect("resolving again"), (options, vec![]));
        }
    }

    #[test]
    fn contradictions_name_both_sides() {
        let cases = [
            ("--cache-text --finetune-bert", &["--cache-text", "--finetune-bert"][..]),
            ("--cache-text --bert-dropout auto", &["--cache-text", "--bert-dropout auto"]),
            ("--cache-text --bert-init random", &["--cache-text", "--bert-init random"]),
            ("--cache-text --faithful", &["--cache-text", "--faithful", "dropout"]),
            ("--faithful --select rsum", &["--faithful", "--select rsum"]),
            ("--faithful --mask-padding", &["--faithful", "--mask-padding", "authors' side"]),
            ("--max_violation --no-max-violation", &["--no-max-violation"]),
            ("--bert-config x --bert-init random --bert-layers 1", &["--bert-config", "--bert-layers"]),
            ("--vocab-size 99", &["--vocab-size", "--bert-init random"]),
            ("--embed_size 30 --num_head_IMRC 4", &["embed_size 30", "num_head_IMRC"]),
            ("--raw_feature_norm_CMRC l1norm", &["authors' code", "clipped_l2norm"]),
            ("--raw_feature_norm_CMRC no", &["no such", "no_norm"]),
            ("--batch_size 0", &["--batch_size", "expected: 1"]),
            ("--learning_rate nan", &["--learning_rate"]),
            ("--time-limit 0", &["--time-limit"]),
            ("--direction i2t --extra_img 1", &["--extra_img", "i2t", "--extra_stc"]),
            ("--direction t2i --extra_stc 1 --extra_img 1", &["--extra_stc", "t2i", "--extra_img"]),
            ("--direction both", &["i2t", "t2i"]),
            ("--precision f64", &["f64", "f32", "f16"]),
        ];
        for (line, parts) in cases {
            let error = resolved(line).expect_err(line).to_string();
            for part in parts {
                assert!(error.contains(part), "{line}: no {part:?} in {error}");
            }
        }
    }

    #[test]
    fn what_does_nothing_is_said_once() {
        let (options, warnings) =
            resolved("--drop 0.5 --measure cosine --extra_stc 1 --extra_img 2 --reset_train").expect("legal");
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert_eq!((options.extra_stc, options.extra_img), (1, 0));
    }

    #[test]
    fn options_survive_a_file() {
        let line = "--bert-init random --vocab-size 900 --precision f16";
        let (options, _) = resolved(line).expect("legal");
        let text = serde_json::to_string(&options).expect("JSON");
        assert!(text.contains("\"lambda_softmax_CMRC\":4.0"), "{text}");
        assert!(text.contains("\"precision\":\"f16\""), "{text}");
        assert_eq!(serde_json::from_str::<TrainOptions>(&text).expect("the same form"), options);
    }
}
