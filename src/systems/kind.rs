//! The list of systems: for each its options, and how a stored configuration or an authors' checkpoint becomes one.

use std::path::Path;
use std::sync::RwLock;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde_json::{Map, Value as Json, json};

use super::{System, dime, gsmn, hat, hrem};
use crate::error::{Error, Result};
use crate::nn::{bert, swin};

/// A system's options as the user gave them: what makes the model, and the parts of its schedule.
pub trait Options {
    /// Checks the options against each other; `faithful` takes the authors' side where ours differs. Returns
    /// warnings, a line each, of options that do nothing.
    ///
    /// # Errors
    /// Options that contradict each other, and values that make no model.
    fn check(&self, faithful: bool) -> Result<Vec<String>>;

    /// What the options common to all systems are where the user does not give them: name and value.
    fn common(&self, faithful: bool) -> Vec<(&'static str, String)>;

    /// All of them as plain data, under the authors' names.
    fn all(&self) -> Json;

    /// Those that may change when a run goes on.
    fn free(&self) -> Json;

    /// Those that a run keeps for life.
    fn fixed(&self) -> Json {
        let (mut all, free) = (self.all(), self.free());
        if let (Some(all), Some(free)) = (all.as_object_mut(), free.as_object()) {
            all.retain(|name, _| !free.contains_key(name));
        }
        all
    }

    /// The pieces of a caption at most, where the options say.
    fn max_words(&self) -> Option<usize>;

    /// The folder of the vocabulary that `--vocab_path` names: of systems that read [`Text::Words`].
    fn vocabulary(&self) -> Option<&Path> {
        None
    }

    /// The folder of the image encoder to begin with: of systems that read [`Images::Pictures`].
    fn image_encoder(&self) -> Option<&Path> {
        None
    }

    /// The checkpoint that is evaluated on the test split instead of training, where the options ask for that.
    fn tested(&self) -> Option<&Path> {
        None
    }

    /// The system over these encoders.
    ///
    /// # Errors
    /// Sizes that make no model.
    fn system(&self, encoders: &Encoders) -> Result<Box<dyn System>>;
}

/// What a system is built on besides its own options.
#[derive(Clone, Debug)]
pub struct Encoders {
    /// Regions of an image.
    pub regions: usize,
    /// Width of a region's features.
    pub dim: usize,
    /// The image encoder to begin with, where one is given.
    pub image: Option<swin::Config>,
    /// What it reads captions with.
    pub text: TextSide,
    /// Samples of a batch.
    pub batch_size: usize,
    /// Whether the authors' side is taken where ours differs.
    pub faithful: bool,
}

/// What a system reads of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Images {
    /// Features of its regions, which another program made.
    Features,
    /// The picture itself.
    Pictures,
}

/// What a system reads of a caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// WordPieces, through a BERT.
    Bert {
        /// Training always includes it.
        trained: bool,
    },
    /// Ids of the data's own words.
    Words,
}

impl Text {
    /// Whether training always includes all that reads text.
    pub fn trained(self) -> bool {
        match self {
            Self::Bert { trained } => trained,
            Self::Words => true,
        }
    }
}

/// What the captions of a new system are read with, as its [`Text`] says.
#[derive(Clone, Debug)]
pub enum TextSide {
    /// The text encoder.
    Bert(bert::Config),
    /// The number of ids in the vocabulary.
    Words(usize),
}

impl Encoders {
    /// The text encoder of a system that reads [`Text::Bert`]; panics for another.
    #[track_caller]
    pub fn bert(&self) -> &bert::Config {
        match &self.text {
            TextSide::Bert(config) => config,
            TextSide::Words(_) => panic!("a system that reads words has no BERT"),
        }
    }

    /// The number of ids in the vocabulary of a system that reads [`Text::Words`]; panics for another.
    #[track_caller]
    pub fn words(&self) -> usize {
        match self.text {
            TextSide::Words(ids) => ids,
            TextSide::Bert(_) => panic!("a system with a BERT has no vocabulary of words"),
        }
    }
}

/// What a configuration calls that of its BERT.
pub const BERT: &str = "bert_config";

/// An authors' checkpoint, without its tensors.
pub struct Checkpoint<'a> {
    /// The options it was trained with, under the authors' names, and [`BERT`], as far as they are known.
    pub options: Map<String, Json>,
    /// What the system reads of a caption.
    pub text: Text,
    /// The shape of a parameter.
    pub shape: &'a dyn Fn(&str) -> Option<Vec<usize>>,
}

impl Checkpoint<'_> {
    /// The configuration: the options, with those that a weight's shape tells (name, weight, axis), and no default
    /// for those that are needed.
    ///
    /// # Errors
    /// An unknown BERT of a system that has one, or a needed option that nothing tells.
    pub fn config(self, told: &[(&str, &str, usize)], needed: &[&str]) -> Result<Json> {
        let mut config = self.options;
        for (option, weight, axis) in told {
            if let Some(shape) = (self.shape)(weight) {
                config.insert((*option).into(), json!(shape.get(*axis)));
            }
        }
        if matches!(self.text, Text::Bert { .. }) && !config.contains_key(BERT) {
            return Err(Error::new("the configuration of the checkpoint's BERT is not known").cure(
                "give it: --config bert_config.json (of the folder that --bert_path named in training)",
            ));
        }
        let unknown: Vec<&str> = needed.iter().copied().filter(|o| !config.contains_key(*o)).collect();
        if unknown.is_empty() {
            return Ok(Json::Object(config));
        }
        let settings: Vec<String> = unknown.iter().map(|option| format!("--set {option}=VALUE")).collect();
        Err(Error::new(format!(
            "the checkpoint's options do not say `{}`, which no weight tells",
            unknown.join("`, `")
        ))
        .cure(format!("give what they were in training: {}", settings.join(" "))))
    }
}

/// Sets of keys and their values, by name.
pub type Sets = &'static [(&'static str, &'static [(&'static str, &'static str)])];

/// What a system's folder declares once; [`Kind::of`] makes its entry in the list.
pub trait Family: Options + Args + 'static {
    /// The name, as `--system` takes it.
    const NAME: &'static str;
    /// The paper, for help.
    const TITLE: &'static str;
    /// Command lines, for help.
    const EXAMPLES: &'static str = "";
    /// The state dicts in the list `model` of an authors' checkpoint, in order.
    const MODULES: &'static [&'static str];
    /// What it reads of an image.
    const IMAGES: Images = Images::Features;
    /// What it reads of a caption.
    const TEXT: Text;
    /// The authors' names of options common to all systems: theirs, and the id of ours.
    const ALIASES: &'static [(&'static str, &'static str)] = &[];
    /// Of a system whose authors' program is called `with key=value ..`: the sets that may be named there. The first is
    /// nameless and always counts: where their defaults are not ours.
    const SETS: Sets = &[];

    /// The option that a key after `with` stands for, and its value: those of the same name, where nothing else is meant.
    fn key<'a>(key: &'a str, value: &'a str) -> (&'a str, &'a str) {
        (key, value)
    }

    /// The system of a stored configuration: a run's, or a fixture's.
    ///
    /// # Errors
    /// An option that is missing or of another type; sizes that make no model.
    fn open(config: &Json) -> Result<Box<dyn System>>;

    /// The configuration of an authors' checkpoint.
    ///
    /// # Errors
    /// An option that nothing tells.
    fn import(checkpoint: Checkpoint) -> Result<Json>;
}

/// One system of the list.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The name, as `--system` takes it.
    pub name: &'static str,
    /// The paper, for help.
    pub title: &'static str,
    /// Command lines, for help.
    pub examples: &'static str,
    /// The state dicts in the list `model` of an authors' checkpoint, in order.
    pub modules: &'static [&'static str],
    /// What it reads of an image.
    pub images: Images,
    /// What it reads of a caption.
    pub text: Text,
    /// See [`Family::ALIASES`].
    pub aliases: &'static [(&'static str, &'static str)],
    /// See [`Family::SETS`].
    pub sets: Sets,
    /// See [`Family::key`].
    pub key: for<'a> fn(&'a str, &'a str) -> (&'a str, &'a str),
    /// Adds its options to a command.
    pub augment: fn(Command) -> Command,
    /// Its options among those that were parsed.
    pub parse: fn(&ArgMatches) -> std::result::Result<Box<dyn Options>, clap::Error>,
    /// See [`Family::open`].
    pub open: fn(&Json) -> Result<Box<dyn System>>,
    /// See [`Family::import`].
    pub import: fn(Checkpoint) -> Result<Json>,
}

impl Kind {
    /// The entry of a system.
    pub const fn of<F: Family>() -> Self {
        Self {
            name: F::NAME,
            title: F::TITLE,
            examples: F::EXAMPLES,
            modules: F::MODULES,
            images: F::IMAGES,
            text: F::TEXT,
            aliases: F::ALIASES,
            sets: F::SETS,
            key: F::key,
            augment: |command| F::augment_args(command),
            parse: |matches| Ok(Box::new(<F as FromArgMatches>::from_arg_matches(matches)?)),
            open: F::open,
            import: F::import,
        }
    }
}

/// The system that is trained where none is named.
pub const DEFAULT: &str = dime::Options::NAME;

/// The published systems.
const PUBLISHED: &[Kind] = &[
    Kind::of::<dime::Options>(),
    Kind::of::<hrem::Options>(),
    Kind::of::<gsmn::Options>(),
    Kind::of::<hat::Options>(),
];

/// Systems of the program that uses this library.
static OWN: RwLock<Vec<Kind>> = RwLock::new(Vec::new());

/// Adds a system of one's own to the list; one of the same name is replaced.
pub fn register(kind: Kind) {
    let mut own = OWN.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    own.retain(|other| other.name != kind.name);
    own.push(kind);
}

/// Every system: the published ones, then those that were registered.
pub fn kinds() -> Vec<Kind> {
    let own = OWN.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    PUBLISHED.iter().chain(own.iter()).copied().collect()
}

/// The system of a name.
///
/// # Errors
/// No such system.
pub fn kind(name: &str) -> Result<Kind> {
    let all = kinds();
    all.iter().find(|kind| kind.name == name).copied().ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|kind| kind.name).collect();
        Error::new("no such system").expected(names.join(", ")).found(if name.is_empty() {
            "none"
        } else {
            name
        })
    })
}

/// The system of a stored configuration, which names it.
///
/// # Errors
/// As [`kind`] and [`Family::open`].
pub fn of_config(config: &Json) -> Result<Box<dyn System>> {
    (kind(config["system"].as_str().unwrap_or_default())?.open)(config)
}
