//! Turns other programs' weights into ours: original names, shapes checked against the configuration, floats
//! as f32, and a report of what became of every tensor.

use crate::data::pytorch::Checkpoint;
use crate::data::weights::{self, Dtype, Entry, Weights};
use crate::{Error, Result};
use serde_json::{Map, Value as Json, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Names and shapes of a model's weights.
pub type Layout = Vec<(String, Vec<usize>)>;

/// The largest size a configuration can name.
const MAX_SIZE: u64 = 1 << 24;

/// How many lines of a kind a report shows before it only counts them.
const MAX_SHOWN: usize = 60;

/// A file with weights, of either format.
pub enum Source {
    /// What `torch.save` wrote.
    PyTorch(Checkpoint),
    /// A safetensors file.
    Safetensors(Weights),
}

impl Source {
    /// Opens a file, by its content: a safetensors header, or else a PyTorch checkpoint.
    pub fn open(path: &Path) -> Result<Self> {
        let named = path.extension().is_some_and(|extension| extension == "safetensors");
        if named || has_json_header(path)? {
            return Weights::open(path).map(Self::Safetensors);
        }
        Checkpoint::open(path).map(Self::PyTorch)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        match self {
            Self::PyTorch(checkpoint) => checkpoint.path(),
            Self::Safetensors(weights) => weights.path(),
        }
    }

    /// The format's name.
    pub fn format(&self) -> &'static str {
        match self {
            Self::PyTorch(_) => "PyTorch",
            Self::Safetensors(_) => "safetensors",
        }
    }

    /// All names with their shapes.
    pub fn shapes(&self) -> Box<dyn Iterator<Item = (&str, &[usize])> + '_> {
        match self {
            Self::PyTorch(checkpoint) => Box::new(checkpoint.shapes()),
            Self::Safetensors(weights) => Box::new(weights.shapes()),
        }
    }

    /// The options beside the weights: the attributes of the authors' `opt`.
    fn options(&self) -> Option<&Map<String, Json>> {
        match self {
            Self::PyTorch(checkpoint) => checkpoint.facts().get("opt")?.as_object(),
            Self::Safetensors(_) => None,
        }
    }

    /// Reads a tensor: floats as f32, other types as they are.
    pub fn entry(&self, name: &str) -> Result<Entry<'_>> {
        let weights = match self {
            Self::PyTorch(checkpoint) => return checkpoint.entry(name),
            Self::Safetensors(weights) => weights,
        };
        let bytes = weights.bytes(name)?;
        let dtype = weights.dtype(name).unwrap_or(Dtype::U8);
        let shape = weights.shape(name).unwrap_or_default().to_vec();
        let (dtype, bytes) = match dtype {
            Dtype::F16 | Dtype::BF16 | Dtype::F64 => {
                (Dtype::F32, Cow::Owned(bytemuck::cast_slice(&weights.f32s(name)?).to_vec()))
            }
            _ => (dtype, Cow::Borrowed(bytes)),
        };
        Ok(Entry { name: name.to_string(), dtype, shape, bytes })
    }
}

/// Whether a file begins as safetensors files do: a length that a header can have, then its JSON.
fn has_json_header(path: &Path) -> Result<bool> {
    let io = |e| Error::io("open the weights", path, &e);
    let mut begin = Vec::new();
    File::open(path).map_err(io)?.take(9).read_to_end(&mut begin).map_err(io)?;
    let length = begin.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    Ok(length.is_some_and(|n| n <= weights::MAX_HEADER) && begin.get(8) == Some(&b'{'))
}

/// What an import makes.
pub struct Imported<'a> {
    /// The weights, under the names they are stored with.
    pub entries: Vec<Entry<'a>>,
    /// The notes stored in the weights file.
    pub metadata: HashMap<String, String>,
    /// What `config.json` will hold; `null` for plain tensors.
    pub config: Json,
    /// What became of every tensor.
    pub report: Report,
}

/// What became of every tensor of a source. Its `Display` is what a user sees.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many tensors were taken.
    pub taken: usize,
    /// How many values they hold.
    pub values: usize,
    /// Old and new names, where they differ.
    pub renamed: Vec<(String, String)>,
    /// What was left out, and why.
    pub ignored: Vec<(String, String)>,
    /// What the model has and the file does not, where that is allowed.
    pub missing: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "taken    {} tensors, {} values", self.taken, self.values)?;
        let renamed = self.renamings();
        let ignored: Vec<_> = self.ignored.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        let missing = (self.missing.len(), &self.missing);
        let parts = [
            ("renamed", (self.renamed.len(), &renamed)),
            ("ignored", (ignored.len(), &ignored)),
            ("missing", missing),
        ];
        for (label, (count, lines)) in parts {
            writeln!(f, "{label:8} {count}")?;
            lines.iter().take(MAX_SHOWN).try_for_each(|line| writeln!(f, "    {line}"))?;
            if lines.len() > MAX_SHOWN {
                writeln!(f, "    .. and {} more", lines.len() - MAX_SHOWN)?;
            }
        }
        Ok(())
    }
}

impl Report {
    /// One line for each way of renaming: a changed prefix with its count, or the names themselves.
    fn renamings(&self) -> Vec<String> {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (old, new) in &self.renamed {
            *counts.entry(changed_part(old, new)).or_default() += 1;
        }
        let star = |head: &str| if head.is_empty() { "*".to_string() } else { format!("{head}.*") };
        let line =
            |((old, new), count): (&(&str, &str), &usize)| match self.renamed.iter().any(|(o, _)| o == old) {
                true => format!("{old} -> {new}"),
                false => format!("{} -> {} ({count})", star(old), star(new)),
            };
        counts.iter().map(line).collect()
    }
}

/// Two names without the parts, between dots, that they end in alike.
fn changed_part<'a>(mut old: &'a str, mut new: &'a str) -> (&'a str, &'a str) {
    while old.rsplit('.').next() == new.rsplit('.').next() && !old.is_empty() && !new.is_empty() {
        old = old.rsplit_once('.').map_or("", |(head, _)| head);
        new = new.rsplit_once('.').map_or("", |(head, _)| head);
    }
    (old, new)
}

/// Every tensor as it is.
pub fn tensors(source: &Source) -> Result<Imported<'_>> {
    let plan =
        Plan { kept: source.shapes().map(|(name, _)| (name, name.to_string())).collect(), ..Plan::default() };
    plan.run(source, Json::Null)
}

/// A BERT encoder: no `bert.` prefix, LayerNorm's gamma and beta as weight and bias. Heads (`cls.*`, and
/// whatever else stands beside `bert.*`) and the `position_ids` buffer are left out; the pooler may be missing.
/// `layout` says what weights a configuration asks for.
pub fn bert<'a>(
    source: &'a Source,
    config: &Json,
    layout: impl FnOnce(&Json) -> Result<Layout>,
) -> Result<Imported<'a>> {
    let place = source.path().display();
    let mut expected = layout(config).map_err(|e| e.at(place).cure("give the right --config"))?;
    let prefixed = source.shapes().any(|(name, _)| name.starts_with("bert."));
    let mut plan = Plan::default();
    for (name, _) in source.shapes() {
        let inner = if prefixed { name.strip_prefix("bert.") } else { Some(name) };
        match inner {
            Some("embeddings.position_ids") => plan.ignore(name, "a counter, which is not needed"),
            Some(inner) if !inner.starts_with("cls.") => plan.kept.push((name, modern(inner))),
            _ => plan.ignore(name, "a head that the encoder does not have"),
        }
    }
    if !plan.kept.iter().any(|(_, new)| new.starts_with("pooler.")) {
        let (pooler, rest): (Layout, Layout) =
            expected.into_iter().partition(|(name, _)| name.starts_with("pooler."));
        plan.missing =
            pooler.into_iter().map(|(name, _)| format!("{name} (the pooler, which nothing uses)")).collect();
        expected = rest;
    }
    plan.check(source, &expected)?;
    plan.run(source, config.clone())
}

/// The authors' order in a checkpoint's list `model`.
const SUB_MODULES: [&str; 3] = ["img_enc", "txt_enc", "itr_module"];

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

/// DIME: the authors' checkpoint, or an exported one with sub-module names. `given` is BERT's configuration
/// or a whole DIME one; `settings` overrule single options; `layout` says what weights a configuration asks for.
pub fn dime<'a>(
    source: &'a Source,
    given: Option<&Json>,
    settings: &[(String, Json)],
    layout: impl FnOnce(&Json) -> Result<Layout>,
) -> Result<Imported<'a>> {
    let mut plan = Plan::default();
    let lists = source.shapes().any(|(name, _)| name.starts_with("model."));
    for (name, _) in source.shapes() {
        let new = match name.split_once('.') {
            Some(("model", rest)) => sub_module(rest),
            Some((module, _)) if !lists && SUB_MODULES.contains(&module) => Some(modern(name)),
            _ => None,
        };
        match new {
            Some(new) => plan.kept.push((name, new)),
            None => plan.ignore(name, "not of the model"),
        }
    }
    let place = source.path().display();
    for module in SUB_MODULES {
        if !plan.kept.iter().any(|(_, new)| new.starts_with(module)) {
            let error = Error::new(format!("the checkpoint holds no `{module}`")).at(place);
            let expected = "`model`, a list of three state dicts: img_enc, txt_enc, itr_module";
            return Err(error.expected(expected).cure("give a checkpoint of DIME's train.py"));
        }
    }
    let shapes: HashMap<&str, &[usize]> = source.shapes().collect();
    let shape_of = |name: &str| {
        let (old, _) = plan.kept.iter().find(|(_, new)| new == name)?;
        shapes.get(old).copied()
    };
    let config = dime_config(source, given, settings, shape_of).map_err(|e| e.at(&place))?;
    let expected = layout(&config).map_err(|e| e.at(&place).cure("give it in --config, or by --set"))?;
    plan.check(source, &expected)?;
    plan.metadata = progress(source);
    plan.run(source, config)
}

/// How far training had come, as the checkpoint says.
fn progress(source: &Source) -> HashMap<String, String> {
    let said = |key: &str| match source {
        Source::PyTorch(checkpoint) => checkpoint.facts().get(key).map(Json::to_string),
        Source::Safetensors(weights) => weights.metadata().get(key).cloned(),
    };
    ["epoch", "best_rsum", "Eiters"]
        .into_iter()
        .filter_map(|key| Some((key.to_string(), said(key)?)))
        .collect()
}

/// `0.fc.weight` as `img_enc.fc.weight`; `None` for a list that is too long.
fn sub_module(rest: &str) -> Option<String> {
    let (index, name) = rest.split_once('.')?;
    let module = SUB_MODULES.get(index.parse::<usize>().ok()?)?;
    Some(modern(&format!("{module}.{name}")))
}

/// LayerNorm's old names `gamma` and `beta` as `weight` and `bias`.
fn modern(name: &str) -> String {
    for (old, new) in [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")] {
        if let Some(stem) = name.strip_suffix(old) {
            return format!("{stem}{new}");
        }
    }
    name.to_string()
}

/// The configuration of a DIME: the checkpoint's `opt`, what `given` adds, what `settings` overrule, and what
/// shapes tell.
fn dime_config<'s>(
    source: &Source,
    given: Option<&Json>,
    settings: &[(String, Json)],
    shape_of: impl Fn(&str) -> Option<&'s [usize]>,
) -> Result<Json> {
    let mut config = source.options().cloned().unwrap_or_default();
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
    let (width, heads) = (size(&config, "embed_size")?, size(&config, "num_head_IMRC")?);
    if width % heads != 0 {
        let error = Error::new("`num_head_IMRC` does not divide `embed_size`");
        return Err(error
            .found(format!("{heads} heads, {width} channels"))
            .cure("give it: --set num_head_IMRC=N"));
    }
    Ok(config)
}

/// A size of a configuration: a whole number from 1.
fn size(config: &Json, option: &str) -> Result<usize> {
    let value = config.get(option).unwrap_or(&Json::Null);
    let size = value.as_u64().filter(|n| (1..=MAX_SIZE).contains(n));
    size.map(|n| n as usize).ok_or_else(|| {
        let error = Error::new(format!("`{option}` is not known, or no size"));
        let found = if value.is_null() { "nothing".to_string() } else { value.to_string() };
        error.expected(format!("a whole number from 1 to {MAX_SIZE}")).found(found)
    })
}

/// Which tensors are taken, and under which names.
#[derive(Default)]
struct Plan<'a> {
    kept: Vec<(&'a str, String)>,
    ignored: Vec<(String, String)>,
    missing: Vec<String>,
    metadata: HashMap<String, String>,
}

impl<'a> Plan<'a> {
    fn ignore(&mut self, name: &str, why: &str) {
        self.ignored.push((name.to_string(), why.to_string()));
    }

    fn check(&self, source: &Source, expected: &Layout) -> Result<()> {
        let place = source.path().display();
        let mut names: Vec<&str> = self.kept.iter().map(|(_, new)| new.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let error = Error::new(format!("two tensors of the file mean `{}`", pair[0])).at(place);
            return Err(error.cure("remove one of them in PyTorch and save the state dict anew"));
        }
        let shapes: HashMap<&str, &[usize]> = source.shapes().collect();
        weights::check(place, expected, self.kept.iter().map(|(old, new)| (new.as_str(), shapes[old])))
    }

    /// Reads what is kept. A configuration means a model, whose weights must be finite.
    fn run(self, source: &'a Source, config: Json) -> Result<Imported<'a>> {
        let mut report = Report { ignored: self.ignored, missing: self.missing, ..Report::default() };
        let mut entries = Vec::with_capacity(self.kept.len());
        let mut bad = Vec::new();
        for (old, new) in self.kept {
            let mut entry = source.entry(old)?;
            if !config.is_null() {
                let values = weights::widen(entry.dtype, &entry.bytes);
                bad.extend(values.and_then(|values| weights::non_finite(&new, values)));
            }
            report.taken += 1;
            report.values += entry.shape.iter().product::<usize>();
            if old != new {
                report.renamed.push((old.to_string(), new.clone()));
            }
            entry.name = new;
            entries.push(entry);
        }
        weights::refuse_non_finite(source.path().display(), &bad)?;
        if let Source::PyTorch(checkpoint) = source {
            let objects = checkpoint.unread().iter();
            report.ignored.extend(objects.map(|what| (what.clone(), "not read, and never made".to_string())));
        }
        Ok(Imported { entries, metadata: self.metadata, config, report })
    }
}
