//! Karpathy's `dataset_*.json`: `images[].{filename, filepath, split, sentences[].raw}`.

use std::path::Path;

use serde::Deserialize;

use super::{Item, Places, Set, canonical, json, refuse_twice, stripped};
use crate::Result;

const FORM: &str =
    "{\"images\": [{\"filename\": .., \"split\": .., \"sentences\": [{\"raw\": ..}, ..]}, ..]}";

#[derive(Deserialize)]
struct File {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    filename: String,
    /// The folder below that of the pictures: COCO's `train2014` or `val2014`.
    filepath: Option<String>,
    split: String,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// The pictures of a split in the file's order, or of all.
pub(super) fn read(folder: &Path, path: &Path, split: Option<&str>) -> Result<Set> {
    let mut odd = Vec::new();
    let file: File = json(path, FORM, &mut odd)?;
    let places = Places::of(folder);
    let asked = |image: &Image| split.is_none_or(|split| split == canonical(&image.split));
    let items = file.images.into_iter().filter(asked).map(|image| item(&places, &image));
    let at = |e: crate::Error| e.at(path.display());
    let items = items.collect::<Result<Vec<Item>>>().map_err(at)?;
    refuse_twice(&items, "in the file twice").map_err(at)?;
    Ok(Set { items, source: path.to_path_buf(), odd, ..Set::default() })
}

fn item(places: &Places, image: &Image) -> Result<Item> {
    let texts = image.sentences.iter().map(|sentence| stripped(&sentence.raw)).collect();
    match image.filepath.as_deref().filter(|path| !path.is_empty()) {
        Some(path) => places.item(&[&format!("{path}/{}", image.filename), &image.filename], texts),
        None => places.item(&[&image.filename], texts),
    }
}

/// The names of the file's splits, sorted.
pub(super) fn splits(path: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Splits {
        images: Vec<Split>,
    }
    #[derive(Deserialize)]
    struct Split {
        split: String,
    }
    let file: Splits = json(path, FORM, &mut Vec::new())?;
    let names = file.images.iter().map(|image| canonical(&image.split).to_owned());
    Ok(names.collect::<std::collections::BTreeSet<_>>().into_iter().collect())
}
