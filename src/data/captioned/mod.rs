//! Pictures and their captions, for systems that read pictures themselves. Three kinds of folders are known:
//!
//! - Karpathy's: `dataset_*.json`, with the pictures in `images/`;
//! - COCO's: `annotations/` with the captions of 2014 and the arrays of caption ids `coco_{train,dev,test}_ids.npy`,
//!   with the pictures in `images/{train2014,val2014}`;
//! - any other: `captions.tsv` (`.txt`, `.csv`, `.json`, `.jsonl`), whose pictures are divided into splits by their
//!   names, or such a file for each split, `{split}_captions.tsv`. Names are relative to the folder or its `images/`.
//!
//! Every picture of a split gets as many captions: where files have more or fewer, the number that keeps the most.

mod coco;
mod divide;
mod karpathy;
mod lines;

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;

use super::captions::{self, MAX_CAPTIONS, MAX_FILE, MAX_LINE, read_limited};
use crate::{Error, Result};

/// The folder of pictures.
pub(super) const IMAGES: &str = "images";
/// Names that an error or a notice lists before it only counts.
const NAMED: usize = 10;

/// Pictures and their captions: caption `c` describes picture `c / captions_per_image`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captioned {
    /// The pictures' files; all of them are there.
    pub files: Vec<PathBuf>,
    /// The captions, picture by picture.
    pub texts: Vec<String>,
    /// Captions a picture.
    pub captions_per_image: usize,
    /// What was left out and how pictures were divided, a sentence each, and what is odd about the captions.
    pub notices: Vec<String>,
    /// How many of the notices, the last ones, are about odd captions.
    pub odd: usize,
}

/// A picture as a file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    /// Relative to the folder of pictures, with `/` between its parts.
    name: String,
    file: PathBuf,
    /// Whether the file is there.
    found: bool,
    texts: Vec<String>,
}

/// What a file says of a split, or of all.
#[derive(Debug, Default)]
struct Set {
    items: Vec<Item>,
    /// What names the pictures.
    source: PathBuf,
    notices: Vec<String>,
    odd: Vec<String>,
}

/// The kind of a folder.
#[derive(Debug)]
enum Form {
    Coco,
    Karpathy(PathBuf),
    /// One caption file, divided into splits here.
    Whole(PathBuf),
    /// A caption file for each split.
    Splits(BTreeMap<String, PathBuf>),
}

/// Finds the pictures and captions of a split. `dev` is the split that files call `dev` or `val`. Without
/// `captions_per_image`, the number that keeps the most captions is taken.
///
/// # Errors
/// A folder of none of the known kinds; no such split; files that are missing, not understood or past the limits (1 GB,
/// 4 million captions, 64 KB each); pictures that are missing, named twice, or named outside the folder; a
/// `captions_per_image` that no picture has.
pub fn open(folder: &Path, split: &str, captions_per_image: Option<usize>) -> Result<Captioned> {
    let form = known(folder)?;
    let set = read(folder, &form, Some(canonical(split)))?;
    if set.items.is_empty() {
        return Err(no_split(folder, split, &set.source, &names_of(folder, &form)?));
    }
    finish(folder, set, captions_per_image)
}

/// The splits that the folder has, by name; none where its files are not understood.
pub fn splits(folder: &Path) -> Vec<String> {
    known(folder).and_then(|form| names_of(folder, &form)).unwrap_or_default()
}

/// Whether a folder is of one of the known kinds, whatever its files hold.
pub fn is_known(folder: &Path) -> bool {
    folder.is_dir() && (!matches!(form(folder), Ok(None)) || coco::has_captions(folder))
}

/// Every picture of a folder with its captions, picture by picture, whatever its split; of a caption file, if one is
/// given.
///
/// # Errors
/// As [`open`]; a picture in two splits.
pub fn all(folder: &Path, captions: Option<&Path>) -> Result<Vec<(PathBuf, Vec<String>)>> {
    let set = match captions {
        Some(path) => lines::read(folder, path)?,
        None => read(folder, &known(folder)?, None)?,
    };
    if set.items.is_empty() {
        return Err(Error::new("there is no picture in this file").at(set.source.display()));
    }
    refuse_missing(folder, &set.items, &set.source)?;
    Ok(set.items.into_iter().map(|item| (item.file, item.texts)).collect())
}

/// The pictures and captions of each split, by name; of a caption file, which may be anywhere, if one is given: its
/// pictures are divided by their names.
///
/// # Errors
/// As [`open`].
pub fn every(
    folder: &Path,
    captions: Option<&Path>,
    captions_per_image: Option<usize>,
) -> Result<Vec<(String, Captioned)>> {
    let form = captions.map_or_else(|| known(folder), |path| Ok(Form::Whole(path.to_path_buf())))?;
    let names = names_of(folder, &form)?;
    let split = |name: String| {
        let set = read(folder, &form, Some(&name))?;
        Ok((name, finish(folder, set, captions_per_image)?))
    };
    names.into_iter().map(split).collect()
}

/// A picture's name below the folder, and below its folder of pictures if it is there.
pub fn name_of(folder: &Path, file: &Path) -> String {
    let below = file.strip_prefix(folder).unwrap_or(file);
    below.strip_prefix(IMAGES).unwrap_or(below).display().to_string()
}

/// The name that a split goes by here.
pub fn canonical(split: &str) -> &str {
    if split == "val" { "dev" } else { split }
}

fn known(folder: &Path) -> Result<Form> {
    form(folder)?.ok_or_else(|| unknown(folder))
}

/// The kind of a folder, by the names of its files; nothing for one of another kind.
fn form(folder: &Path) -> Result<Option<Form>> {
    let entries = std::fs::read_dir(folder).map_err(|e| {
        let error = Error::io("list the data folder", folder, &e);
        match folder.exists() {
            true => error,
            false => error
                .cure("say where the data are: --data_path DIR --data_name NAME, for the folder DIR/NAME"),
        }
    })?;
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort_unstable();
    if coco::is_here(folder) {
        return Ok(Some(Form::Coco));
    }
    let known = |name: &&String| name.starts_with("dataset") && name.ends_with(".json");
    if let Some(name) = only_one(folder, names.iter().filter(known).collect())? {
        return Ok(Some(Form::Karpathy(folder.join(name))));
    }
    let stem = |name: &String| {
        let (stem, ending) = name.rsplit_once('.')?;
        lines::ENDINGS.contains(&ending).then(|| stem.to_owned())
    };
    let whole = names.iter().filter(|name| stem(name).is_some_and(|stem| stem == "captions")).collect();
    let mut parts: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for name in &names {
        if let Some(split) = stem(name).as_deref().and_then(|stem| stem.strip_suffix("_captions"))
            && !split.is_empty()
        {
            parts.entry(canonical(split).to_owned()).or_default().push(name);
        }
    }
    let whole = only_one(folder, whole)?;
    match whole {
        Some(name) => match parts.values().flatten().next() {
            None => Ok(Some(Form::Whole(folder.join(name)))),
            Some(part) => Err(two_files(folder, name, part)),
        },
        None if parts.is_empty() => Ok(None),
        None => {
            let mut files = BTreeMap::new();
            for (split, names) in parts {
                let name = only_one(folder, names)?;
                files.extend(name.map(|name| (split, folder.join(name))));
            }
            Ok(Some(Form::Splits(files)))
        }
    }
}

fn only_one<'a>(folder: &Path, names: Vec<&'a String>) -> Result<Option<&'a String>> {
    match names.as_slice() {
        [] => Ok(None),
        [name] => Ok(Some(name)),
        [one, other, ..] => Err(two_files(folder, one, other)),
    }
}

fn two_files(folder: &Path, one: &str, other: &str) -> Error {
    Error::new("two files hold the captions of one split")
        .at(folder.display())
        .expected("one of them")
        .found(format!("{one} and {other}"))
        .cure("move the one that is not meant out of the folder")
}

fn unknown(folder: &Path) -> Error {
    let error = Error::new("there are no captions of pictures in this folder").at(folder.display()).expected(
        "dataset_*.json with images/, COCO's annotations/ with coco_{train,dev,test}_ids.npy, or captions.tsv (.txt, \
         .csv, .json, .jsonl) beside the pictures",
    );
    let write = "write captions.tsv: for each caption a line with the picture's name, a TAB and the caption";
    let found = super::dataset::splits(folder, false);
    if coco::has_captions(folder) {
        return error.found("COCO's captions without the id arrays").cure(
            "put coco_train_ids.npy, coco_dev_ids.npy and coco_test_ids.npy into annotations/, or Karpathy's \
             dataset_coco.json into the folder",
        );
    }
    match found.is_empty() {
        true => error.cure(write),
        false => error
            .found(format!("features only: {}_ims.npy", found.join("_ims.npy, ")))
            .cure(format!("add the pictures and {write}")),
    }
}

/// The pictures of one split, or of all.
fn read(folder: &Path, form: &Form, split: Option<&str>) -> Result<Set> {
    match form {
        Form::Coco => coco::read(folder, split),
        Form::Karpathy(path) => karpathy::read(folder, path, split),
        Form::Whole(path) => {
            let set = lines::read(folder, path)?;
            Ok(match split {
                Some(split) => divide::part(set, split),
                None => set,
            })
        }
        Form::Splits(files) => {
            let mut sets = files.iter().filter(|(name, _)| split.is_none_or(|split| split == name.as_str()));
            let first = sets.next().map(|(_, path)| lines::read(folder, path));
            let mut all = first.unwrap_or_else(|| Ok(Set { source: folder.into(), ..Set::default() }))?;
            for (_, path) in sets {
                all.items.extend(lines::read(folder, path)?.items);
            }
            refuse_twice(&all.items, "in two splits, or twice in one").map_err(|e| e.at(folder.display()))?;
            Ok(all)
        }
    }
}

/// The names of the splits.
fn names_of(folder: &Path, form: &Form) -> Result<Vec<String>> {
    Ok(match form {
        Form::Coco => coco::splits(folder),
        Form::Karpathy(path) => karpathy::splits(path)?,
        Form::Whole(path) => divide::splits(&lines::read(folder, path)?),
        Form::Splits(files) => files.keys().cloned().collect(),
    })
}

fn no_split(folder: &Path, split: &str, source: &Path, there: &[String]) -> Error {
    let error = Error::new(format!("there is no picture in the \"{split}\" split")).at(source.display());
    match there {
        [] => error.cure("check that this is the file you meant"),
        [only] if only == "train" && source.parent() == Some(folder) => {
            error.found("the train split alone").cure("add pictures, or files of other splits")
        }
        _ => error.cure(format!("take one of its splits: {}", there.join(", "))),
    }
}

/// Gives every picture as many captions and checks that all are there.
fn finish(folder: &Path, set: Set, asked: Option<usize>) -> Result<Captioned> {
    let Set { mut items, source, mut notices, mut odd } = set;
    let at = |e: Error| e.at(source.display());
    let k = match asked {
        None => most_kept(&items),
        Some(k) => k,
    };
    notices.extend(even_out(&mut items, k, asked.is_some()).map_err(at)?);
    refuse_missing(folder, &items, &source)?;
    if items.len() * k > MAX_CAPTIONS {
        return Err(at(captions::too_much(MAX_CAPTIONS, 0)));
    }
    if let Some(item) = items.iter().find(|item| item.texts.iter().any(|text| text.len() > MAX_LINE)) {
        let longest = item.texts.iter().map(String::len).max().unwrap_or(0);
        return Err(at(Error::new("a caption is too long")
            .expected(format!("at most {MAX_LINE} bytes"))
            .found(format!("{longest} bytes of {}", shorten(&item.name)))
            .cure("shorten it, or check that this is the caption file")));
    }
    let blank: Vec<&str> = items
        .iter()
        .flat_map(|item| {
            item.texts.iter().filter(|text| captions::is_blank(text)).map(|_| item.name.as_str())
        })
        .collect();
    if !blank.is_empty() {
        let plural = if blank.len() == 1 { "caption" } else { "captions" };
        odd.push(format!("{} empty {plural}: of {}", blank.len(), listed(&blank)));
    }
    let place = |notice: String| format!("{}: {notice}", source.display());
    let count = odd.len();
    Ok(Captioned {
        files: items.iter().map(|item| item.file.clone()).collect(),
        texts: items.into_iter().flat_map(|item| item.texts).collect(),
        captions_per_image: k,
        notices: notices.into_iter().chain(odd).map(place).collect(),
        odd: count,
    })
}

/// The number of captions a picture that keeps the most captions; of several, the one that keeps the most pictures.
fn most_kept(items: &[Item]) -> usize {
    let mut counts: Vec<usize> = items.iter().map(|item| item.texts.len()).collect();
    counts.sort_unstable();
    let n = counts.len();
    let kept = |(i, k): (usize, usize)| k * (n - i);
    let all = counts.into_iter().enumerate();
    all.rev().max_by_key(|at| kept(*at)).map_or(0, |(_, k)| k)
}

/// Leaves out pictures of fewer captions and captions past these; says so.
fn even_out(items: &mut Vec<Item>, k: usize, asked: bool) -> Result<Option<String>> {
    let most = items.iter().map(|item| item.texts.len()).max().unwrap_or(0);
    if k == 0 || most < k {
        let what = if asked { "no picture has as many captions" } else { "no picture has a caption" };
        let error = Error::new(what);
        return Err(match asked {
            true => error
                .expected(format!("{k} captions a picture, as --captions-per-image says"))
                .found(format!("at most {most}"))
                .cure("leave out --captions-per-image, or correct it"),
            false => error.cure("write captions for the pictures"),
        });
    }
    let (before, fewer) = (items.len(), items.iter().filter(|item| item.texts.len() < k).count());
    let more: usize = items.iter().map(|item| item.texts.len().saturating_sub(k)).sum();
    items.retain(|item| item.texts.len() >= k);
    items.iter_mut().for_each(|item| item.texts.truncate(k));
    let mut said = Vec::new();
    if fewer > 0 {
        said.push(format!("{fewer} of {before} pictures have fewer than {k} captions and are left out"));
    }
    if more > 0 {
        let which = if k == 1 { "first".to_owned() } else { format!("first {k}") };
        said.push(format!("{more} captions past a picture's {which} are not read"));
    }
    Ok((!said.is_empty()).then(|| said.join("; ")))
}

fn refuse_missing(folder: &Path, items: &[Item], source: &Path) -> Result<()> {
    let missing: Vec<&str> = items.iter().filter(|item| !item.found).map(|item| item.name.as_str()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let images = folder.join(IMAGES);
    let place = if images.is_dir() { images } else { folder.to_path_buf() };
    let what = match missing.len() {
        1 => "a picture is missing".to_owned(),
        n => format!("{n} of {} pictures are missing", items.len()),
    };
    Err(Error::new(what)
        .at(place.display())
        .expected(format!("the pictures that {} names", source.display()))
        .found(format!("no {}", listed(&missing)))
        .cure(format!("put them there, or take their captions out of {}", source.display())))
}

fn refuse_twice(items: &[Item], what: &str) -> Result<()> {
    let mut seen = HashMap::new();
    let mut twice: Vec<&str> = Vec::new();
    for item in items {
        let times = seen.entry(item.name.as_str()).or_insert(0);
        *times += 1;
        if *times == 2 {
            twice.push(&item.name);
        }
    }
    match twice.is_empty() {
        true => Ok(()),
        false => Err(Error::new(format!("a picture is {what}"))
            .expected("every picture once")
            .found(listed(&twice))
            .cure("take all but one of its entries out")),
    }
}

/// The first names and how many more there are.
fn listed(names: &[&str]) -> String {
    let mut shown = names.iter().take(NAMED).map(|name| shorten(name)).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED {
        shown += &format!(" and {} more", names.len() - NAMED);
    }
    shown
}

/// At most 120 characters, for an error.
fn shorten(text: &str) -> String {
    let short: String = text.chars().take(120).collect();
    let short = short.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().nth(120).is_some() { short + ".." } else { short }
}

/// A picture's name relative to the folder of pictures, the same for every way to write it.
fn relative(name: &str) -> Result<String> {
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(part) => parts.extend(part.to_str()),
            _ => {
                return Err(Error::new("a picture's name leads out of the data folder")
                    .expected("a name relative to the folder or its images/, without ..")
                    .found(shorten(name))
                    .cure("put the picture into the folder and write its name from there"));
            }
        }
    }
    let parts = if parts.len() > 1 && parts[0] == IMAGES { &parts[1..] } else { &parts[..] };
    match parts {
        [] => Err(Error::new("a picture has no name").expected("a file's name")),
        _ => Ok(parts.join("/")),
    }
}

/// Where pictures are looked for.
struct Places(Vec<PathBuf>);

impl Places {
    /// A folder's `images/`, if it has one, then the folder itself.
    fn of(folder: &Path) -> Self {
        let images = folder.join(IMAGES);
        Self([images].into_iter().filter(|place| place.is_dir()).chain([folder.to_path_buf()]).collect())
    }

    /// The item of a picture's names, the likeliest first, by the first place that holds one of them.
    fn item(&self, names: &[&str], texts: Vec<String>) -> Result<Item> {
        let names: Vec<String> = names.iter().map(|name| relative(name)).collect::<Result<_>>()?;
        let mut tried = self.0.iter().flat_map(|place| names.iter().map(|name| place.join(name)));
        let held = tried.clone().find(|path| path.exists());
        let (found, first) = (held.is_some(), tried.next());
        let file = held.or(first).expect("there is a name and a place");
        Ok(Item { name: names[0].clone(), file, found, texts })
    }
}

/// Reads a JSON file; bytes that are no UTF-8 are dropped and said to be.
fn json<T: DeserializeOwned>(path: &Path, form: &str, odd: &mut Vec<String>) -> Result<T> {
    let bytes = read_limited(path, MAX_FILE, "the captions")?;
    if bytes.is_empty() {
        return Err(Error::new("the caption file is empty").at(path.display()).expected(form));
    }
    let kept = match std::str::from_utf8(&bytes) {
        Ok(_) => None,
        Err(_) => {
            captions::refuse_no_text(&bytes).map_err(|e| e.at(path.display()))?;
            Some(captions::decode(&bytes))
        }
    };
    if let Some(text) = &kept {
        odd.push(format!("{} bytes that are no UTF-8 are dropped", bytes.len() - text.len()));
    }
    let text = kept.as_deref().map_or(bytes.as_slice(), str::as_bytes);
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    serde_json::from_slice(text).map_err(|e| not_understood(&e, form).at(path.display()))
}

fn not_understood(e: &serde_json::Error, form: &str) -> Error {
    Error::new("the captions are not understood")
        .expected(form)
        .found(shorten(&e.to_string()))
        .cure("correct the file, or copy or download it again")
}

/// A caption without the space around it.
fn stripped(text: &str) -> String {
    let kept = captions::strip(text.as_bytes());
    // ASCII at both ends is cut: what is left is text as before.
    String::from_utf8_lossy(kept).into_owned()
}

#[cfg(test)]
mod tests;
