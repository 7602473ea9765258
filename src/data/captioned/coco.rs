//! COCO's captions of 2014, chosen by arrays of caption ids: five an image, one after another.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use npyz::{DType, Endianness, TypeChar};
use serde::Deserialize;

use super::{IMAGES, Item, Places, Set, json, listed, stripped};
use crate::data::captions::read_limited;
use crate::data::dataset::PER_IMAGE;
use crate::data::features::array_header;
use crate::{Error, Result};

const FOLDER: &str = "annotations";
const FORM: &str = "{\"images\": [{\"id\": .., \"file_name\": ..}, ..], \"annotations\": [{\"id\": .., \
                    \"image_id\": .., \"caption\": ..}, ..]}";
const IDS_FORM: &str = "an array of caption ids, [captions], '<i8'";
/// Each split with its pictures' set and how many of its ids are read: published results are of 1,000 images of dev and
/// 5,000 of test.
const SPLITS: [(&str, &str, Option<usize>); 3] =
    [("dev", "val2014", Some(1_000)), ("test", "val2014", Some(5_000)), ("train", "train2014", None)];
/// The largest file of ids read: 100 million.
const MAX_IDS: u64 = 800 << 20;
/// Brackets of a plain array's header.
const BRACKETS: usize = 3;

#[derive(Deserialize)]
struct Captions {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
    file_name: String,
}

#[derive(Deserialize)]
struct Annotation {
    id: i64,
    image_id: i64,
    caption: String,
}

fn ids_file(folder: &Path, split: &str) -> PathBuf {
    folder.join(FOLDER).join(format!("coco_{split}_ids.npy"))
}

fn captions_file(folder: &Path, set: &str) -> PathBuf {
    folder.join(FOLDER).join(format!("captions_{set}.json"))
}

/// Whether a folder has any array of ids.
pub(super) fn is_here(folder: &Path) -> bool {
    !splits(folder).is_empty()
}

/// Whether a folder has the captions, with or without ids.
pub(super) fn has_captions(folder: &Path) -> bool {
    SPLITS.iter().any(|(_, set, _)| captions_file(folder, set).exists())
}

/// The splits that a folder has ids of.
pub(super) fn splits(folder: &Path) -> Vec<String> {
    let there = SPLITS.iter().filter(|(split, ..)| ids_file(folder, split).exists());
    there.map(|(split, ..)| (*split).to_owned()).collect()
}

/// The pictures of a split in the order of its ids, or of all splits.
pub(super) fn read(folder: &Path, split: Option<&str>) -> Result<Set> {
    let mut all = Set { source: folder.join(FOLDER), ..Set::default() };
    for (name, set, most) in SPLITS {
        let asked = match split {
            Some(split) => split == name,
            None => ids_file(folder, name).exists(),
        };
        if asked {
            let part = read_split(folder, name, set, most)?;
            all.items.extend(part.items);
            all.odd.extend(part.odd);
            all.notices.extend(part.notices);
            if split.is_some() {
                all.source = part.source;
            }
        }
    }
    super::refuse_twice(&all.items, "in the ids twice").map_err(|e| e.at(all.source.display()))?;
    Ok(all)
}

fn read_split(folder: &Path, split: &str, set: &str, most: Option<usize>) -> Result<Set> {
    let path = ids_file(folder, split);
    let at = |e: Error| e.at(path.display());
    let mut ids = ids(&read_limited(&path, MAX_IDS, "the caption ids")?).map_err(at)?;
    let (mut odd, mut notices, there) = (Vec::new(), Vec::new(), ids.len());
    if let Some(most) = most.map(|images| images * PER_IMAGE).filter(|most| *most < there) {
        ids.truncate(most);
        let images = most / PER_IMAGE;
        notices.push(format!("the first {images} images of {} are read, as published", there / PER_IMAGE));
    }
    let karpathys = folder.join("dataset_coco.json");
    if karpathys.exists() {
        notices.push(format!("the ids say which captions are read, not {}", karpathys.display()));
    }
    if !ids.len().is_multiple_of(PER_IMAGE) {
        return Err(at(Error::new("the caption ids are no whole images")
            .expected("five ids an image, one after another")
            .found(format!("{} ids", ids.len()))
            .cure("take the first five captions of each image")));
    }
    let source = captions_file(folder, set);
    let file: Captions = json(&source, FORM, &mut odd)?;
    let wanted: HashSet<i64> = ids.iter().copied().collect();
    let captions: HashMap<i64, Annotation> = file
        .annotations
        .into_iter()
        .filter(|caption| wanted.contains(&caption.id))
        .map(|caption| (caption.id, caption))
        .collect();
    let unknown: Vec<String> =
        ids.iter().filter(|id| !captions.contains_key(id)).map(ToString::to_string).collect();
    if !unknown.is_empty() {
        let shown: Vec<&str> = unknown.iter().map(String::as_str).collect();
        return Err(at(Error::new("there are ids of unknown captions")
            .expected(format!("ids of captions of {}", source.display()))
            .found(listed(&shown))
            .cure("take the ids and the annotations of one data set")));
    }
    let names = file.images.into_iter().map(|image| (image.id, image.file_name)).collect();
    let places = Places(vec![
        folder.join(IMAGES).join(set),
        folder.join(IMAGES),
        folder.join(set),
        folder.to_path_buf(),
    ]);
    let items = ids.chunks(PER_IMAGE).map(|ids| item(&places, set, ids, &captions, &names, &source));
    let items = items.collect::<Result<_>>().map_err(at)?;
    Ok(Set { items, source: path.clone(), notices, odd })
}

fn item(
    places: &Places,
    set: &str,
    ids: &[i64],
    captions: &HashMap<i64, Annotation>,
    names: &HashMap<i64, String>,
    source: &Path,
) -> Result<Item> {
    let image = captions[&ids[0]].image_id;
    if let Some(other) = ids.iter().find(|id| captions[id].image_id != image) {
        return Err(Error::new("five ids in a row are of several images")
            .expected(format!("captions of image {image}, as the first of the five"))
            .found(format!("{other}, a caption of image {}", captions[other].image_id))
            .cure("write five ids for each image, one after another"));
    }
    let Some(name) = names.get(&image) else {
        return Err(Error::new("an image of the captions is unknown")
            .at(source.display())
            .expected("every caption's image among the images")
            .found(format!("no image {image}"))
            .cure("copy or download the annotations again"));
    };
    let texts = ids.iter().map(|id| stripped(&captions[id].caption)).collect();
    let item = places.item(&[name], texts)?;
    Ok(Item { name: format!("{set}/{}", item.name), ..item })
}

/// The ids of an array.
fn ids(bytes: &[u8]) -> Result<Vec<i64>> {
    let (header, start) = array_header(bytes, BRACKETS)?;
    let dtype = header.dtype();
    let wrong = |what: &str, found: String| {
        let cure = "numpy.save(file, numpy.asarray(ids, 'int64'))";
        Err(Error::new(what).expected(IDS_FORM).found(found).cure(cure))
    };
    let width = match &dtype {
        DType::Plain(kind) if matches!(kind.type_char(), TypeChar::Int | TypeChar::Uint) => {
            match (kind.endianness(), kind.size_field()) {
                (Endianness::Little, width @ (4 | 8)) => width as usize,
                _ => return wrong("the caption ids are of an unusual type", dtype.descr()),
            }
        }
        _ => return wrong("the caption ids are no integers", dtype.descr()),
    };
    let &[n] = header.shape() else {
        return wrong("the caption ids are no list", format!("{:?}", header.shape()));
    };
    let data = &bytes[start..];
    if n.checked_mul(width as u64) != Some(data.len() as u64) {
        let found = format!("{} bytes for {n} ids of {width} bytes", data.len());
        return Err(Error::new("the array of ids has another length than its header says")
            .expected(IDS_FORM)
            .found(found)
            .cure("copy or download the file again"));
    }
    Ok(match width {
        4 => data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
        _ => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
    })
}
