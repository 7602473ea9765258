//! HAT's options on the command line and in a run's folder, and how its authors' checkpoints tell them.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::config::out_of_range;
use super::run_py::{self, RunPyOptions};
use super::{Config, Hat, IMAGE, ModelOptions};
use crate::error::{Error, Result};
use crate::nn::swin;
use crate::systems::{BERT, Checkpoint, Encoders, Family, Form, Images, Sets, System, Text};

/// The least share of a picture that published training reads.
const LEAST_SHARE: f64 = 0.08;

/// HAT's options: those of the published `config.py` under their names and with their defaults.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    #[serde(flatten)]
    image: ImageOptions,
    #[command(flatten)]
    #[serde(flatten)]
    training: TrainingOptions,
    #[command(flatten)]
    #[serde(flatten)]
    files: FileOptions,
    #[command(flatten)]
    #[serde(skip)]
    theirs: RunPyOptions,
}

/// Where the image encoder's weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SwinInit {
    /// From the folder of `--swin_path`.
    Pretrained,
    /// Random.
    Random,
}

/// The image encoder.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[command(rename_all = "verbatim", next_help_heading = "HAT: the image encoder")]
struct ImageOptions {
    /// Width and height of a picture as it is read: a multiple of 32
    #[arg(long, value_name = "N", default_value_t = 224)]
    image_size: usize,
    /// Where Swin's weights come from
    #[arg(long = "swin-init", value_enum, default_value_t = SwinInit::Pretrained)]
    #[serde(rename = "swin-init")]
    swin_init: SwinInit,
    /// Width of a random Swin's first stage [default: 128, Swin-B's]
    #[arg(long = "swin-embed", value_name = "N")]
    #[serde(rename = "swin-embed")]
    swin_embed: Option<usize>,
    /// Blocks of a random Swin's four stages [default: 2 2 18 2]
    #[arg(long = "swin-depths", value_name = "N", num_args = 1.., value_delimiter = ',')]
    #[serde(rename = "swin-depths")]
    swin_depths: Option<Vec<usize>>,
    /// Heads of a random Swin's four stages [default: 4 8 16 32]
    #[arg(long = "swin-heads", value_name = "N", num_args = 1.., value_delimiter = ',')]
    #[serde(rename = "swin-heads")]
    swin_heads: Option<Vec<usize>>,
    /// The chance that training leaves out a picture's last block; the first one's is 0
    #[arg(long = "drop-path", value_name = "X", default_value_t = 0.1)]
    #[serde(rename = "drop-path")]
    drop_path: f64,
}

/// How it is trained.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "HAT: training")]
#[serde(default)]
pub(super) struct TrainingOptions {
    /// Epochs in which the encoders are left as they are
    #[arg(long = "frozen-epochs", value_name = "N", default_value_t = 11)]
    #[serde(rename = "frozen-epochs")]
    pub(super) frozen_epochs: u64,
    /// Epochs after which the learning rate falls to a tenth, again and again
    #[arg(long = "lr-step", value_name = "N", default_value_t = 10)]
    #[serde(rename = "lr-step")]
    pub(super) lr_step: u64,
    /// Steps in which the learning rate rises to its full height
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub(super) warmup: u64,
    /// The encoders' learning rate beside that of the maps
    #[arg(long = "encoder-lr-factor", value_name = "X", default_value_t = 1.0)]
    #[serde(rename = "encoder-lr-factor")]
    pub(super) encoder_lr_factor: f64,
    /// Epochs whose loss counts all negatives; after them the hardest alone
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) vse_mean_warmup_epochs: u64,
    /// Training reads random parts of pictures, of at least this share of them, half of them mirrored; 0: it reads them as
    /// evaluation does
    #[arg(long, value_name = "SHARE", default_value_t = LEAST_SHARE)]
    pub(super) crop: f64,
    /// Runs the encoder's blocks and the alignment again on the way back: less memory, a third more work
    #[arg(long = "checkpoint-blocks")]
    #[serde(rename = "checkpoint-blocks")]
    pub(super) checkpoint_blocks: bool,
}

impl Default for TrainingOptions {
    fn default() -> Self {
        Self {
            frozen_epochs: 11,
            lr_step: 10,
            warmup: 0,
            encoder_lr_factor: 1.0,
            vse_mean_warmup_epochs: 0,
            crop: LEAST_SHARE,
            checkpoint_blocks: false,
        }
    }
}

impl TrainingOptions {
    fn check(&self) -> Result<()> {
        if self.lr_step == 0 {
            return Err(out_of_range("lr-step", "at least 1", 0)
                .cure("give an --lr-step past --num_epochs to keep the learning rate"));
        }
        if !(0.0..=1.0).contains(&self.crop) {
            return Err(out_of_range("crop", "0 to 1", self.crop));
        }
        let factor = self.encoder_lr_factor;
        match factor.is_finite() && factor >= 0.0 {
            true => Ok(()),
            false => Err(out_of_range("encoder-lr-factor", "a number that is not negative", factor)),
        }
    }

    fn form(&self) -> Form {
        if self.checkpoint_blocks { Form::Recomputed } else { Form::Fast }
    }
}

/// Where the image encoder is.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[command(rename_all = "verbatim", next_help_heading = "HAT: the image encoder")]
struct FileOptions {
    /// An imported Swin: model.safetensors and config.json
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "absolute")]
    swin_path: Option<PathBuf>,
}

/// What may change when a run goes on.
const FREE: [&str; 5] = ["frozen-epochs", "lr-step", "warmup", "encoder-lr-factor", "swin_path"];

/// A path that means the same from any folder.
fn absolute<S: serde::Serializer>(path: &Option<PathBuf>, to: S) -> std::result::Result<S::Ok, S::Error> {
    let path = path.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    path.serialize(to)
}

impl super::super::Options for Options {
    fn check(&self, _: bool) -> Result<Vec<String>> {
        self.model.check()?;
        self.training.check()?;
        let image = &self.image;
        let of_random = [
            ("--swin-embed", image.swin_embed.is_some()),
            ("--swin-depths", image.swin_depths.is_some()),
            ("--swin-heads", image.swin_heads.is_some()),
        ];
        match (image.swin_init, &self.files.swin_path) {
            (SwinInit::Pretrained, _) => {
                if let Some((option, _)) = of_random.iter().find(|(_, given)| *given) {
                    return Err(Error::new(format!("{option} is for a Swin made from random weights"))
                        .cure("add --swin-init random; a pretrained Swin brings its own sizes"));
                }
            }
            (SwinInit::Random, Some(_)) => {
                return Err(Error::new("--swin_path contradicts --swin-init random")
                    .cure("leave out --swin_path or --swin-init random"));
            }
            (SwinInit::Random, None) => self.random_swin().check()?,
        }
        let mut warnings = self.theirs.check()?;
        let frozen = self.training.frozen_epochs;
        if image.swin_init == SwinInit::Random && frozen > 0 {
            warnings.push(format!(
                "the random Swin is left as it is for {frozen} epochs: --frozen-epochs 0 trains it from the start"
            ));
        }
        Ok(warnings)
    }

    fn common(&self, faithful: bool) -> Vec<(&'static str, String)> {
        let ours = [
            ("data_name", "f30k"),
            ("batch_size", "58"),
            ("learning_rate", "1e-4"),
            ("num_epochs", "100"),
            ("grad_clip", "0"),
            ("bert_dropout", "auto"),
            ("log_step", "100"),
            // After each epoch only.
            ("val_step", "1048576"),
        ];
        let theirs = [("select", "r1")];
        let all = ours.into_iter().chain(theirs.into_iter().filter(|_| faithful));
        let folder = self.theirs.run_folder().map(|folder| ("logger_name", folder));
        all.map(|(name, value)| (name, value.to_string())).chain(folder).collect()
    }

    fn all(&self) -> Json {
        serde_json::to_value(self).expect("options are plain data")
    }

    fn free(&self) -> Json {
        let mut all = self.all();
        if let Some(all) = all.as_object_mut() {
            all.retain(|name, _| FREE.contains(&name.as_str()));
        }
        all
    }

    fn max_words(&self) -> Option<usize> {
        Some(self.model.max_text_len)
    }

    fn image_encoder(&self) -> Option<&Path> {
        self.files.swin_path.as_deref()
    }

    fn tested(&self) -> Option<&Path> {
        self.theirs.tested()
    }

    fn system(&self, encoders: &Encoders) -> Result<Box<dyn System>> {
        let swin = match (self.image.swin_init, &encoders.image) {
            (SwinInit::Random, _) => self.random_swin(),
            (SwinInit::Pretrained, Some(swin)) => swin::Config {
                img_size: self.image.image_size,
                drop_path_rate: self.image.drop_path,
                ..swin.clone()
            },
            (SwinInit::Pretrained, None) => {
                return Err(Error::new("there is no image encoder to begin with").cure(
                    "give an imported Swin with --swin_path (`import -- swin FILE OUT` makes one), or train a small one along with \
                     --swin-init random",
                ));
            }
        };
        let config = Config {
            options: self.model.clone(),
            swin,
            bert: encoders.bert().clone(),
            faithful: encoders.faithful,
        };
        config.check()?;
        Ok(Box::new(Hat { config, training: self.training.clone(), form: self.training.form() }))
    }
}

impl Options {
    fn random_swin(&self) -> swin::Config {
        let image = &self.image;
        swin::Config {
            img_size: image.image_size,
            patch_size: 4,
            in_chans: 3,
            embed_dim: image.swin_embed.unwrap_or(128),
            depths: image.swin_depths.clone().unwrap_or_else(|| vec![2, 2, 18, 2]),
            num_heads: image.swin_heads.clone().unwrap_or_else(|| vec![4, 8, 16, 32]),
            mlp_ratio: 4.0,
            drop_path_rate: image.drop_path,
        }
    }
}

/// The options that a weight's shape tells: the weight and its axis.
const TOLD: [(&str, &str, usize); 1] = [("hidden_size", "cross_modal_image_transform.weight", 0)];

/// The options without which scores are others, and that no shape tells.
const NEEDED: [&str; 2] = ["direction", "lambda_softmax"];

impl Family for Options {
    const NAME: &'static str = "hat";
    const EXAMPLES: &'static str = "\
  crossweave train --system hat --data_path data/ --data_name f30k --swin_path swin --bert_path bert \\
      --logger_name runs/hat
  crossweave train --system hat --swin_path swin --bert_path bert with data_root=data/ direction=t2i
  crossweave train --system hat --bert_path bert with coco_config data_root=data/ test_only=True \\
      checkpoint=hat.ckpt
  crossweave train --config tools/demo-hat.toml --seed 2

After `with` are the keys of the authors' run.py, as key=value, and the set coco_config. What is not given is as there: \
seed 0, datasets=f30k, the run in result/finetune_irtr_f30k. --swin_path and --bert_path name what their code downloads. A \
key that does nothing there does nothing here, and is told.";
    const TITLE: &'static str = "HAT (ACM MM 2023)";
    const MODULES: &'static [&'static str] = &[
        "vit_model",
        "text_transformer",
        "cross_modal_text_transform",
        "cross_modal_image_transform",
        "cross_modal_text_transform_1",
        "cross_modal_image_transform_1",
        "cross_modal_text_transform_2",
        "cross_modal_image_transform_2",
    ];
    const IMAGES: Images = Images::Pictures;
    const TEXT: Text = Text::Bert { trained: true };
    const ALIASES: &'static [(&'static str, &'static str)] = run_py::ALIASES;
    const SETS: Sets = run_py::SETS;

    fn key<'a>(key: &'a str, value: &'a str) -> (&'a str, &'a str) {
        run_py::key(key, value)
    }

    fn open(config: &Json) -> Result<Box<dyn System>> {
        let not_understood =
            |e: serde_json::Error| Error::new(format!("the configuration is not understood: {e}"));
        let training = TrainingOptions::deserialize(config).map_err(not_understood)?;
        let config = Config::deserialize(config).map_err(not_understood)?;
        config.check()?;
        training.check()?;
        let form = training.form();
        Ok(Box::new(Hat { config, training, form }))
    }

    /// The options are one value of Lightning's hyper-parameters.
    fn import(mut checkpoint: Checkpoint) -> Result<Json> {
        if let Some(Json::Object(config)) = checkpoint.options.remove("config") {
            let given = std::mem::replace(&mut checkpoint.options, config);
            checkpoint.options.extend(given);
        }
        if let Some(bert) = checkpoint.options.remove("bert") {
            checkpoint.options.entry(BERT).or_insert(bert);
        }
        let swin = swin_of(&checkpoint.options, checkpoint.shape)?;
        checkpoint.options.insert("swin".into(), swin);
        checkpoint.config(&TOLD, &NEEDED)
    }
}

/// The image encoder's sizes: from the weights, whatever the options say of it.
fn swin_of(options: &Map<String, Json>, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<Json> {
    let config = swin::Config::of_shapes(&|name| shape(&format!("{IMAGE}{name}")))?;
    let size = options.get("image_size").and_then(Json::as_u64).map_or(config.img_size, |n| n as usize);
    Ok(serde_json::to_value(swin::Config { img_size: size, ..config })
        .expect("a configuration is plain data"))
}
