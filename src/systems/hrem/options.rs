//! HREM's options on the command line and in a run's folder, and how its authors' checkpoints tell them.

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Config, Hrem, ModelOptions};
use crate::error::{Error, Result};
use crate::systems::{Checkpoint, Encoders, Family, System, Text};

/// HREM's options: those of the published `train.py` under their names and with their defaults.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    #[serde(flatten)]
    training: TrainingOptions,
    #[command(flatten)]
    #[serde(flatten)]
    schedule: ScheduleOptions,
    #[command(flatten)]
    #[serde(skip)]
    idle: IdleOptions,
}

/// What decides a run's numbers besides the model.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "HREM: training")]
#[serde(default)]
pub(super) struct TrainingOptions {
    /// 1: training leaves out a fifth of the regions and changes a fifth of the words; 0: it does not
    #[arg(long, value_name = "0|1", default_value_t = 1)]
    pub(super) size_augment: u8,
}

impl Default for TrainingOptions {
    fn default() -> Self {
        Self { size_augment: 1 }
    }
}

/// What may change when a run goes on.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "HREM: training")]
#[serde(default)]
pub(super) struct ScheduleOptions {
    /// Epochs at whose start the learning rate falls
    #[arg(long, value_name = "N", num_args = 0.., value_delimiter = ',', default_values_t = [15, 25])]
    pub(super) lr_schedules: Vec<u64>,
    /// What the learning rate is multiplied by then
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    pub(super) decay_rate: f64,
    /// The instance level's learning rate beside the encoders'
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub(super) graph_lr_factor: f64,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self { lr_schedules: vec![15, 25], decay_rate: 0.1, graph_lr_factor: 1.0 }
    }
}

/// What changes nothing.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(rename_all = "verbatim", next_help_heading = "HREM: options that do nothing")]
struct IdleOptions {
    /// Does nothing here: one device trains
    #[arg(long, value_name = "0|1")]
    multi_gpu: Option<u8>,
    /// Does nothing here: similarities are saved where they are asked for
    #[arg(long, value_name = "0|1")]
    save_results: Option<u8>,
    /// Does nothing here (see --device)
    #[arg(long = "gpu-id", value_name = "N")]
    gpu_id: Option<String>,
}

fn out_of_range(option: &str, expected: &str, found: impl ToString) -> Error {
    Error::new("the value is out of range")
        .at(format!("--{option}"))
        .expected(expected)
        .found(found.to_string())
}

impl super::super::Options for Options {
    fn check(&self, _: bool) -> Result<Vec<String>> {
        self.model.check()?;
        if self.training.size_augment > 1 {
            return Err(out_of_range("size_augment", "0 or 1", self.training.size_augment));
        }
        let rates =
            [("decay_rate", self.schedule.decay_rate), ("graph_lr_factor", self.schedule.graph_lr_factor)];
        if let Some((name, rate)) = rates.iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return Err(out_of_range(name, "a number that is not negative", rate));
        }
        let idle = [
            ("--multi_gpu", self.idle.multi_gpu.is_some(), "one device trains"),
            (
                "--save_results",
                self.idle.save_results.is_some(),
                "similarities are saved where they are asked for",
            ),
            ("--gpu-id", self.idle.gpu_id.is_some(), "--device picks the adapter"),
        ];
        let given = idle.iter().filter(|(_, given, _)| *given);
        Ok(given.map(|(option, _, why)| format!("{option} does nothing: {why}")).collect())
    }

    fn common(&self, faithful: bool) -> Vec<(&'static str, String)> {
        let mut common = vec![
            ("data_name", format!("{}_precomp", self.model.dataset)),
            ("batch_size", "128".into()),
            ("learning_rate", "5e-4".into()),
            ("log_step", "200".into()),
            ("bert_dropout", "auto".into()),
        ];
        if !faithful {
            common.push(("val_step", "500".into()));
        } else {
            // The published code chooses its checkpoint on the split that it reports.
            common.push(("dev_split", if self.model.is_coco() { "testall" } else { "test" }.into()));
            common.push(("select", "rsum".into()));
            // At the end of an epoch only.
            common.push(("val_step", "1048576".into()));
        }
        common
    }

    fn all(&self) -> Json {
        serde_json::to_value(self).expect("options are plain data")
    }

    fn free(&self) -> Json {
        serde_json::to_value(&self.schedule).expect("options are plain data")
    }

    fn max_words(&self) -> Option<usize> {
        None
    }

    fn system(&self, encoders: &Encoders) -> Result<Box<dyn System>> {
        let kept = (encoders.batch_size as f64 * self.model.threshold) as usize;
        if kept == 0 {
            return Err(out_of_range(
                "threshold",
                &format!("at least 1 sample of --batch_size {}", encoders.batch_size),
                self.model.threshold,
            )
            .cure("raise --threshold or --batch_size"));
        }
        if self.model.topk > encoders.regions {
            let most = format!("at most {}, the regions of an image", encoders.regions);
            return Err(out_of_range("topk", &most, self.model.topk).cure("lower --topk"));
        }
        let config = Config {
            options: self.model.clone(),
            img_dim: encoders.dim,
            k_max_pool: 2,
            faithful: encoders.faithful,
            bert: encoders.bert().clone(),
        };
        config.check()?;
        Ok(Box::new(Hrem {
            config,
            augments: self.training.size_augment == 1,
            schedule: self.schedule.clone(),
        }))
    }
}

/// The options that a weight's shape tells: the weight and its axis.
const TOLD: [(&str, &str, usize); 2] =
    [("embed_size", "txt_enc.linear.weight", 0), ("img_dim", "img_enc.fc.fc.weight", 1)];

/// The options without which embeddings are others, and that no shape tells.
const NEEDED: [&str; 4] = ["nhead", "residual_weight", "no_imgnorm", "no_txtnorm"];

impl Family for Options {
    const NAME: &'static str = "hrem";
    const EXAMPLES: &'static str = "\
  crossweave train --system hrem --batch_size 128 --data_path data/ --dataset f30k --bert_path bert \\
      --logger_name runs/f30k --mask_weight 1.0
  crossweave train --config tools/demo-hrem.toml --seed 2";
    const TITLE: &'static str = "HREM (CVPR 2023)";
    const MODULES: &'static [&'static str] = &["img_enc", "txt_enc"];
    const TEXT: Text = Text::Bert { trained: true };

    fn open(config: &Json) -> Result<Box<dyn System>> {
        let not_understood =
            |e: serde_json::Error| Error::new(format!("the configuration is not understood: {e}"));
        let schedule = ScheduleOptions::deserialize(config).map_err(not_understood)?;
        let augments = TrainingOptions::deserialize(config).map_err(not_understood)?.size_augment == 1;
        let config = Config::deserialize(config).map_err(not_understood)?;
        config.check()?;
        Ok(Box::new(Hrem { config, augments, schedule }))
    }

    fn import(checkpoint: Checkpoint) -> Result<Json> {
        checkpoint.config(&TOLD, &NEEDED)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::nn::Role;
    use crate::nn::bert;
    use crate::systems::{Rates, TextSide, kind};

    /// A small encoder, as a fixture has it.
    fn small_bert() -> Json {
        json!({"vocab_size": 60, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 36, "hidden_act": "gelu (erf)", "max_position_embeddings": 24})
    }

    fn parsed(args: &[&str]) -> Options {
        let command = <Options as Args>::augment_args(clap::Command::new("train").no_binary_name(true));
        clap::FromArgMatches::from_arg_matches(&command.get_matches_from(args)).expect("options")
    }

    fn encoders(batch_size: usize) -> Encoders {
        let text = TextSide::Bert(bert::Config::read(&small_bert()).expect("an encoder"));
        Encoders { regions: 12, dim: 20, image: None, text, batch_size, faithful: false }
    }

    #[test]
    fn defaults_are_the_authors() {
        use crate::systems::Options as _;
        let options = parsed(&[]);
        assert_eq!(options.model, ModelOptions::default());
        assert_eq!(options.training, TrainingOptions::default());
        assert_eq!(options.schedule, ScheduleOptions::default());
        assert!(options.check(true).expect("they make a model").is_empty());
        let coco = parsed(&["--dataset", "coco", "--gpu-id", "1", "--multi_gpu", "0"]);
        assert_eq!(coco.check(false).expect("a model").len(), 2);
        assert!(coco.common(true).contains(&("dev_split", "testall".into())));
        assert!(coco.common(false).contains(&("data_name", "coco_precomp".into())));
    }

    #[test]
    fn a_share_that_connects_nothing_is_refused() {
        use crate::systems::Options as _;
        let options = parsed(&["--threshold", "0.1", "--embed_size", "32"]);
        let error = options.system(&encoders(9)).err().expect("int(9 * 0.1) is 0").to_string();
        assert!(error.contains("--threshold") && error.contains("--batch_size"), "{error}");
        assert!(options.system(&encoders(10)).is_ok());
    }

    #[test]
    fn rates_fall_at_the_epochs_given() {
        use crate::systems::Options as _;
        let options = parsed(&["--lr_schedules", "2", "4", "--graph_lr_factor", "0.5", "--embed_size", "32"]);
        let system = options.system(&encoders(8)).expect("a system");
        let rates = Rates { learning_rate: 1.0, grad_clip: 2.0 };
        let at = |epoch| system.schedule(&rates, epoch, 0).rates;
        assert_eq!(at(1), [("", 1.0), ("bert", 0.1), ("criterion", 0.5)]);
        assert!((at(2)[0].1 - 0.1).abs() < 1e-12 && (at(4)[0].1 - 0.01).abs() < 1e-12);
    }

    #[test]
    fn a_checkpoint_tells_its_model() {
        let options = json!({"embed_size": 7, "nhead": 4, "residual_weight": 0.8, "no_imgnorm": false,
            "no_txtnorm": false, "topk": 4, "warmup": 8000, "lr_schedules": [15, 25], "gpu_id": 0, "dropout": 0.1});
        let Json::Object(mut options) = options else { panic!("an object") };
        options.insert(crate::systems::BERT.into(), small_bert());
        let shape = |name: &str| match name {
            "txt_enc.linear.weight" => Some(vec![24, 20]),
            "img_enc.fc.fc.weight" => Some(vec![24, 13]),
            _ => None,
        };
        let hrem = kind("hrem").expect("it is in the list");
        let import = |options| (hrem.import)(Checkpoint { options, text: hrem.text, shape: &shape });
        let config = import(options.clone()).expect("a configuration");
        let system = (hrem.open)(&config).expect("a system");
        assert_eq!((system.config()["embed_size"].as_u64(), system.inputs().dim), (Some(24), 13));
        // What is stored opens as the same.
        let again = (hrem.open)(&system.config()).expect("a system");
        assert_eq!(again.config(), system.config());
        let criterion = |s: &&crate::nn::ParamSpec| s.role == Role::Criterion;
        assert_eq!(system.parameters().iter().filter(criterion).count(), 8 + 12);
        let mut without = options;
        without.remove("nhead");
        assert!(import(without).expect_err("no shape tells it").to_string().contains("--set nhead=VALUE"));
    }
}
