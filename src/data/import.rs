//! Turns other programs' weights into ours: original names, shapes checked against the configuration, floats
//! as f32, and a report of what became of every tensor.

mod shards;
mod swin;

use crate::data::archive::shown;
use crate::data::pytorch::Checkpoint;
use crate::data::weights::{self, Dtype, Entry, Weights};
use crate::{Error, Result};
use serde_json::{Map, Value as Json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use shards::Shards;
pub use swin::swin;

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
    /// Several files of one model, by the index that names them.
    Shards(Shards),
}

impl Source {
    /// Opens a file, by its content: a safetensors header, or else a PyTorch checkpoint; all files of a model that an
    /// index or its shard stands for.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(index) = shards::index_of(path)? {
            return Shards::open(&index).map(Self::Shards);
        }
        Self::open_one(path)
    }

    /// Opens one file.
    fn open_one(path: &Path) -> Result<Self> {
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
            Self::Shards(shards) => shards.path(),
        }
    }

    /// The format's name.
    pub fn format(&self) -> &'static str {
        match self {
            Self::PyTorch(_) => "PyTorch",
            Self::Safetensors(_) => "safetensors",
            Self::Shards(_) => "shards",
        }
    }

    /// All names with their shapes.
    pub fn shapes(&self) -> Box<dyn Iterator<Item = (&str, &[usize])> + '_> {
        match self {
            Self::PyTorch(checkpoint) => Box::new(checkpoint.shapes()),
            Self::Safetensors(weights) => Box::new(weights.shapes()),
            Self::Shards(shards) => Box::new(shards.files().iter().flat_map(Self::shapes)),
        }
    }

    /// The options beside the weights: the attributes of the authors' `opt`, Lightning's hyper-parameters, or what others
    /// call them.
    fn options(&self) -> Option<&Map<String, Json>> {
        let Self::PyTorch(checkpoint) = self else { return None };
        let keys = ["opt", "hyper_parameters", "hparams", "args", "config"];
        keys.iter().find_map(|key| checkpoint.facts().get(*key)?.as_object())
    }

    /// How far training had come: the numbers beside the weights.
    fn progress(&self) -> HashMap<String, String> {
        match self {
            Self::PyTorch(checkpoint) => {
                let numbers = checkpoint.facts().iter().filter(|(_, value)| value.is_number());
                numbers.map(|(key, value)| (key.clone(), value.to_string())).collect()
            }
            Self::Shards(_) => HashMap::new(),
            Self::Safetensors(weights) => {
                let numbers = weights.metadata().iter().filter(|(_, value)| value.parse::<f64>().is_ok());
                numbers.map(|(key, value)| (key.clone(), value.clone())).collect()
            }
        }
    }

    /// Reads a tensor: floats as f32, other types as they are.
    pub fn entry(&self, name: &str) -> Result<Entry<'_>> {
        let weights = match self {
            Self::PyTorch(checkpoint) => return checkpoint.entry(name),
            Self::Shards(shards) => return shards.holding(name)?.entry(name),
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

/// Where a model's state dicts are in its authors' checkpoints, as data. A pattern is a name without its first
/// or last parts: `cls` matches `cls.bias` and `a.cls`, `pooler.dense` matches `pooler.dense.weight`.
#[derive(Clone, Copy, Debug)]
pub struct StateDicts<'a> {
    /// The model's sub-modules, each the first part of its weights' names, in the order of the checkpoint's list
    /// `model` if it has one.
    pub modules: &'a [&'a str],
    /// Patterns of what the model does not need, and why.
    pub ignored: &'a [(&'a str, &'a str)],
    /// What checkpoints need not hold: the first parts of names.
    pub optional: &'a [&'a str],
}

/// A BERT encoder. Heads (`cls.*`, and whatever else is beside `bert.*`) are left out; the pooler may be missing.
pub const BERT: StateDicts<'static> = StateDicts {
    modules: &["embeddings", "encoder", "pooler"],
    ignored: &[("cls", "a head that the encoder does not have")],
    optional: &["pooler"],
};

/// What any checkpoint may hold though the model does not ask for it: last parts of names.
const EXTRAS: [(&str, &str); 5] = [
    ("position_ids", "it only counts, and is not needed"),
    ("relative_position_index", "it follows from the windows, and is not needed"),
    ("attn_mask", "it follows from the windows, and is not needed"),
    ("token_type_ids", "it is all zeros, and is not needed"),
    ("num_batches_tracked", "it only counts batches, and is not needed"),
];

/// A counter that checkpoints of before PyTorch 0.4.1 lack; 0 will do.
const COUNTER: &str = "num_batches_tracked";

/// Dicts and lists that checkpoints keep their state dicts in.
const LISTS: [&str; 3] = ["model.", "state_dict.", "model_state_dict."];

/// A model: its weights under their own names, wherever the checkpoint has its state dicts and whatever prefix
/// all names of one share (`module.` of DataParallel, say); LayerNorm's old gamma and beta as weight and bias.
///
/// `config` makes the configuration of the options beside the weights, if there are any, and of the weights'
/// shapes, by their own names; `layout` says what weights a configuration asks for.
pub fn model<'a>(
    source: &'a Source,
    dicts: &StateDicts,
    config: impl FnOnce(Option<&Map<String, Json>>, &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<Json>,
    layout: impl FnOnce(&Json) -> Result<Layout>,
) -> Result<Imported<'a>> {
    let mut plan = Plan::found(source, dicts)?;
    let config = plan.fit(source, dicts, config, layout)?;
    plan.run(source, config)
}

/// What precedes the weights' names of each module in a file, for those it holds.
type Prefixes = Vec<Option<String>>;

/// By name or by number, whichever finds more of the modules.
fn prefixes(source: &Source, modules: &[&str]) -> Result<Prefixes> {
    let held = |prefixes: &Prefixes| prefixes.iter().flatten().count();
    let lists = LISTS.iter().map(|list| numbered(source, list, modules.len()));
    let listed = lists.max_by_key(held).unwrap_or_default();
    match named(source, modules) {
        Ok(named) if held(&named) >= held(&listed) => Ok(named),
        Err(error) if held(&listed) == 0 => Err(error),
        _ => Ok(listed),
    }
}

/// Modules in a list, by their numbers.
fn numbered(source: &Source, list: &str, count: usize) -> Prefixes {
    let at = (0..count).map(|index| format!("{list}{index}."));
    at.map(|at| source.shapes().any(|(name, _)| name.starts_with(&at)).then_some(at)).collect()
}

/// Modules by name, side by side after some prefix.
fn named(source: &Source, modules: &[&str]) -> Result<Prefixes> {
    let mut held: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, _) in source.shapes() {
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(dot, _)| dot + 1));
        for start in starts {
            let (prefix, rest) = name.split_at(start);
            let first = rest.split_once('.').map(|(first, _)| first);
            if let Some(module) = modules.iter().find(|module| first == Some(module)) {
                held.entry(prefix).or_default().insert(module);
            }
        }
    }
    // The prefix with most of the modules; the shortest of those.
    let most = held.values().map(BTreeSet::len).max().unwrap_or(0);
    let mut best: Vec<_> = held.into_iter().filter(|(_, modules)| modules.len() == most).collect();
    best.sort_by_key(|(prefix, _)| prefix.len());
    if let [(one, _), (other, _), ..] = best[..]
        && one.len() == other.len()
    {
        let error = Error::new("the file holds several such models").at(source.path().display());
        let found = format!("{} and {}", shown(one), shown(other));
        return Err(error.found(found).cure("save the state dict of the one you want by itself"));
    }
    let (prefix, held) = best.into_iter().next().unwrap_or_default();
    Ok(modules.iter().map(|module| held.contains(module).then(|| format!("{prefix}{module}."))).collect())
}

/// What wrappers put before all names of what they wrap: DataParallel and its kin, and `torch.compile`.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// A module's prefix, and the wrappers that all names after it share.
fn with_wrappers(source: &Source, mut prefix: String) -> String {
    let wraps = |prefix: &str, wrapper: &str| {
        source
            .shapes()
            .filter_map(|(name, _)| name.strip_prefix(prefix))
            .all(|rest| rest.starts_with(wrapper))
    };
    while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| wraps(&prefix, wrapper)) {
        prefix += wrapper;
    }
    prefix
}

/// Whether a pattern of [`StateDicts`] matches a name: whole parts of it, from its beginning or to its end.
fn matches(name: &str, pattern: &str) -> bool {
    let begins = name.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    begins || name.strip_suffix(pattern).is_some_and(|rest| rest.ends_with('.'))
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

/// A size of a configuration: a whole number from 1.
pub fn size(config: &Json, option: &str) -> Result<usize> {
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
    /// Old and new names.
    kept: Vec<(&'a str, String)>,
    /// Names that the file lacks, and that are made.
    made: Vec<String>,
    ignored: Vec<(String, String)>,
    missing: Vec<String>,
    metadata: HashMap<String, String>,
}

impl<'a> Plan<'a> {
    fn ignore(&mut self, name: &str, why: &str) {
        self.ignored.push((name.to_string(), why.to_string()));
    }

    /// Finds the weights of each module.
    fn found(source: &'a Source, dicts: &StateDicts) -> Result<Self> {
        let mut plan = Self::default();
        let prefixes = prefixes(source, dicts.modules)?;
        for (module, prefix) in dicts.modules.iter().zip(&prefixes) {
            if prefix.is_none() && !dicts.optional.contains(module) {
                let error = Error::new(format!("the checkpoint holds no `{module}`"));
                let listed = dicts.modules.join(", ");
                let expected = format!("a state dict, or a list `model` of state dicts, of these: {listed}");
                let cure = "give a checkpoint of this model's own training, or export its state_dict() anew";
                return Err(error.at(source.path().display()).expected(expected).cure(cure));
            }
        }
        let prefixes: Prefixes =
            prefixes.into_iter().map(|prefix| Some(with_wrappers(source, prefix?))).collect();
        for (name, _) in source.shapes() {
            let found = prefixes.iter().enumerate().find_map(|(i, prefix)| {
                let rest = name.strip_prefix(prefix.as_ref()?)?;
                Some(modern(&format!("{}.{rest}", dicts.modules[i])))
            });
            let ignored = |new: &str| dicts.ignored.iter().find(|(pattern, _)| matches(new, pattern));
            match found {
                Some(new) => match ignored(&new) {
                    Some((_, why)) => plan.ignore(name, why),
                    None => plan.kept.push((name, new)),
                },
                None => plan.ignore(name, ignored(name).map_or("not of the model", |(_, why)| why)),
            }
        }
        Ok(plan)
    }

    /// Makes the configuration, and checks what was found against it; [`model`] says what `config` and `layout` are.
    fn fit(
        &mut self,
        source: &'a Source,
        dicts: &StateDicts,
        config: impl FnOnce(Option<&Map<String, Json>>, &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<Json>,
        layout: impl FnOnce(&Json) -> Result<Layout>,
    ) -> Result<Json> {
        let place = source.path().display();
        let shapes: HashMap<&str, &[usize]> = source.shapes().collect();
        let shape_of = |name: &str| {
            let (old, _) = self.kept.iter().find(|(_, new)| new == name)?;
            shapes.get(old).map(|shape| shape.to_vec())
        };
        let config = config(source.options(), &shape_of).map_err(|e| e.at(&place))?;
        let expected = layout(&config)
            .map_err(|e| e.at(&place).cure("give the right --config, or single options by --set"))?;
        let expected = self.settle(expected, dicts);
        self.check(source, &expected)?;
        self.metadata = source.progress();
        Ok(config)
    }

    /// Drops what is superfluous in any checkpoint, and of what is expected takes what may be missing.
    fn settle(&mut self, expected: Layout, dicts: &StateDicts) -> Layout {
        let wanted: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        for (old, new) in std::mem::take(&mut self.kept) {
            let last = new.rsplit('.').next();
            match EXTRAS.iter().find(|(extra, _)| last == Some(extra) && !wanted.contains(new.as_str())) {
                Some((_, why)) => self.ignore(old, why),
                None => self.kept.push((old, new)),
            }
        }
        let kept: HashSet<&str> = self.kept.iter().map(|(_, new)| new.as_str()).collect();
        let (mut made, mut missing) = (Vec::new(), Vec::new());
        let present = |(name, _): &(String, Vec<usize>)| {
            if kept.contains(name.as_str()) {
                return true;
            }
            let optional = dicts.optional.iter().any(|pattern| matches(name, pattern));
            if optional {
                missing.push(format!("{name} (not needed)"));
            } else if matches(name, COUNTER) {
                missing.push(format!("{name} (0: the file is older than this counter)"));
                made.push(name.clone());
            } else {
                return true;
            }
            false
        };
        let expected = expected.into_iter().filter(present).collect();
        self.made = made;
        self.missing.extend(missing);
        expected
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
        let zero = |name| Entry { name, dtype: Dtype::I64, shape: Vec::new(), bytes: Cow::Borrowed(&[0; 8]) };
        entries.extend(self.made.into_iter().map(zero));
        if let Source::PyTorch(checkpoint) = source {
            let objects = checkpoint.unread().iter();
            report.ignored.extend(objects.map(|what| (what.clone(), "not read, and never made".to_string())));
        }
        Ok(Imported { entries, metadata: self.metadata, config, report })
    }
}
