//! Caption files of a line for each caption (`image<TAB>caption`, Flickr's `image#0<TAB>caption`, or `image,caption`),
//! and of JSON: a list, or lines, of `{"image": .., "caption": ..}`, or an object of `{image: [captions]}`.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Places, Set, json, not_understood, relative, shorten, stripped};
use crate::data::captions::{self, Lines, MAX_CAPTIONS, MAX_FILE, MAX_LINE, read_limited};
use crate::{Error, Result};

/// Endings of caption files.
pub(super) const ENDINGS: [&str; 5] = ["tsv", "txt", "csv", "json", "jsonl"];
const FORM: &str = "for each caption a line with the picture's name, a TAB and the caption";
const JSON_FORM: &str = "[{\"image\": NAME, \"caption\": TEXT}, ..] or {NAME: [TEXT, ..], ..}";
const ENTRY_FORM: &str = "{\"image\": NAME, \"caption\": TEXT} on each line";
/// First fields of a header.
const HEADERS: [&str; 7] = ["image", "images", "image_name", "image_path", "filename", "file_name", "file"];
/// Endings of pictures, which tell a line of commas from a sentence.
const PICTURES: [&str; 3] = [".jpg", ".jpeg", ".png"];

/// A caption as a file has it.
struct Row {
    name: String,
    /// Flickr's number after the name.
    number: Option<String>,
    text: String,
    /// The line or entry, from 1.
    at: usize,
}

/// Reads a caption file; its pictures in the order of their first captions.
pub(super) fn read(folder: &Path, path: &Path) -> Result<Set> {
    let mut odd = Vec::new();
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    let at = |e: Error| e.at(path.display());
    let (rows, unit) = match ending.as_str() {
        "json" => (json::<Entries>(path, JSON_FORM, &mut odd)?.0, "entry"),
        _ => (of_lines(path, ending == "jsonl", &mut odd).map_err(at)?, "line"),
    };
    if rows.is_empty() {
        let form = if unit == "line" { FORM } else { JSON_FORM };
        return Err(at(Error::new("there is no caption in this file").expected(form)));
    }
    if rows.len() > MAX_CAPTIONS {
        return Err(at(captions::too_much(MAX_CAPTIONS, 0)));
    }
    let places = Places::of(folder);
    let mut items = Vec::new();
    for (name, texts) in grouped(rows, unit).map_err(at)? {
        items.push(places.item(&[&name], texts).map_err(at)?);
    }
    Ok(Set { items, source: path.to_path_buf(), odd, ..Set::default() })
}

/// Each picture's captions.
fn grouped(rows: Vec<Row>, unit: &str) -> Result<Vec<(String, Vec<String>)>> {
    let (mut pictures, mut places): (Vec<(String, Vec<String>)>, _) = (Vec::new(), HashMap::new());
    let (mut seen, mut again) = (HashSet::new(), Vec::new());
    for Row { name, number, text, at } in rows {
        let name = relative(&name).map_err(|e| e.found(format!("{}, {unit} {at}", shorten(&name))))?;
        let place = *places.entry(name.clone()).or_insert_with(|| {
            pictures.push((name, Vec::new()));
            pictures.len() - 1
        });
        if !captions::is_blank(&text) && !seen.insert((place, number, text.clone())) {
            again.push(format!("{unit} {at}, of {}", shorten(&pictures[place].0)));
        }
        pictures[place].1.push(text);
    }
    if again.is_empty() {
        return Ok(pictures);
    }
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    Err(Error::new("a picture has the same caption twice")
        .expected("every caption of a picture once")
        .found(super::listed(&again))
        .cure(match unit {
            "line" => "delete these lines: names and captions count as they are read, without blanks and quotes around them",
            _ => "keep one of each",
        }))
}

fn of_lines(path: &Path, jsonl: bool, odd: &mut Vec<String>) -> Result<Vec<Row>> {
    let bytes = read_limited(path, MAX_FILE, "the captions")?;
    captions::refuse_no_text(&bytes).map_err(|e| e.expected(if jsonl { ENTRY_FORM } else { FORM }))?;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let (mut rows, mut invalid, mut split) = (Vec::new(), Lines::default(), None);
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.len() > MAX_LINE || rows.len() > MAX_CAPTIONS {
            return Err(captions::too_much(i, line.len()));
        }
        let whole = captions::strip(line);
        if whole.is_empty() {
            continue;
        }
        // A blank caption leaves a TAB at the end, which stays.
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = captions::decode(line);
        if text.len() != line.len() {
            invalid.add(i + 1);
        }
        let at = i + 1;
        let wrong = |e: Error| e.found(format!("line {at}: {}", shorten(text.trim())));
        if jsonl {
            let entry: Entry = serde_json::from_str(&text).map_err(|e| {
                let error = not_understood(&e, ENTRY_FORM);
                error.found(format!("line {at}: {e}"))
            })?;
            rows.extend(entry.rows(at));
            continue;
        }
        let first = split.is_none();
        let by = *split.get_or_insert_with(|| Separator::of(&text));
        let (name, caption) = by.parts(&text).map_err(wrong)?;
        if first && is_header(&name) {
            continue;
        }
        let (name, number) = match name.rsplit_once('#') {
            Some((name, n)) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
                (name, Some(n.into()))
            }
            _ => (name.as_str(), None),
        };
        rows.push(Row { name: name.to_owned(), number, text: caption, at });
    }
    odd.extend(
        invalid
            .sentence("line with invalid UTF-8 (bytes dropped)", "lines with invalid UTF-8 (bytes dropped)"),
    );
    Ok(rows)
}

fn is_header(name: &str) -> bool {
    HEADERS.contains(&name.to_ascii_lowercase().as_str())
}

/// What divides a line.
#[derive(Clone, Copy)]
enum Separator {
    Tab,
    Comma,
}

impl Separator {
    /// As the first line says.
    fn of(line: &str) -> Self {
        let name = line.split(',').next().unwrap_or_default().trim().trim_matches('"').to_ascii_lowercase();
        let named = is_header(&name) || PICTURES.iter().any(|ending| name.ends_with(ending));
        if !line.contains('\t') && line.contains(',') && named { Self::Comma } else { Self::Tab }
    }

    /// The name and the caption of a line.
    fn parts(self, line: &str) -> Result<(String, String)> {
        let wrong = |what: &str| Error::new(what).expected(FORM).cure("correct the line, or remove it");
        let parts = match self {
            Self::Tab => line.split_once('\t').map(|(name, text)| (name.trim().to_owned(), stripped(text))),
            Self::Comma => {
                let (name, text) = match line.trim_start().strip_prefix('"') {
                    Some(quoted) => quoted.split_once("\",").unwrap_or(("", "")),
                    None => line.split_once(',').unwrap_or(("", "")),
                };
                if line.bytes().filter(|b| *b == b'"').count() % 2 == 1 && text.trim_start().starts_with('"')
                {
                    return Err(wrong("a caption does not end on its line")
                        .expected("a quoted caption that ends on its line"));
                }
                line.contains(',').then(|| (name.trim().to_owned(), unquoted(&stripped(text))))
            }
        };
        match parts {
            Some((name, _)) if name.is_empty() => Err(wrong("a caption has no picture")),
            Some(parts) => Ok(parts),
            None if matches!(self, Self::Tab) => Err(wrong("a line has no TAB")),
            None => Err(wrong("a line has no comma")),
        }
    }
}

/// A field of a CSV file without the quotes around it.
fn unquoted(text: &str) -> String {
    let held = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    // Quotes within a quoted field are doubled.
    match held.filter(|held| !held.replace("\"\"", "").contains('"')) {
        Some(held) => stripped(&held.replace("\"\"", "\"")),
        None => text.to_owned(),
    }
}

/// The captions of a JSON file.
struct Entries(Vec<Row>);

#[derive(Deserialize)]
struct Entry {
    #[serde(alias = "filename", alias = "file_name")]
    image: String,
    #[serde(alias = "captions")]
    caption: Texts,
}

/// A caption, or a list of them.
struct Texts(Vec<String>);

impl Entry {
    fn rows(self, at: usize) -> impl Iterator<Item = Row> {
        let Self { image, caption: Texts(texts) } = self;
        texts.into_iter().map(move |text| Row {
            name: image.clone(),
            number: None,
            text: stripped(&text),
            at,
        })
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list or an object of pictures with captions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> std::result::Result<Entries, A::Error> {
                let (mut rows, mut at) = (Vec::new(), 0);
                while let Some(entry) = from.next_element::<Entry>()? {
                    at += 1;
                    rows.extend(entry.rows(at));
                }
                Ok(Entries(rows))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> std::result::Result<Entries, A::Error> {
                let (mut rows, mut at) = (Vec::new(), 0);
                while let Some((image, caption)) = from.next_entry::<String, Texts>()? {
                    at += 1;
                    rows.extend(Entry { image, caption }.rows(at));
                }
                Ok(Entries(rows))
            }
        }
        from.deserialize_any(Form)
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a caption or a list of captions")
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> std::result::Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = from.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }
        from.deserialize_any(Form)
    }
}
