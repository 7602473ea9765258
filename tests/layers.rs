//! The layers of the crate: who may name whom, and the validity of each shader on its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer and the layers it may name directly; what those may name, it may too.
const LAYERS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("shape", &[]),
    ("host", &["error", "shape"]),
    ("gpu", &["error", "shape"]),
    ("tensor", &["gpu", "host"]),
    ("ops", &["tensor"]),
    ("nn", &["ops"]),
    ("systems", &["nn"]),
    ("data", &["error", "shape", "host"]),
    ("eval", &["systems", "data"]),
    ("parity", &["eval"]),
    ("train", &["eval"]),
    ("cli", &["parity", "train"]),
];

/// The layers that may open files.
const FILES: &[&str] = &["data", "eval", "parity", "train", "cli"];
/// Files that hold no layer.
const ROOT: &[&str] = &["lib", "main"];

fn closure(layer: &str) -> BTreeSet<&'static str> {
    let mut all = BTreeSet::new();
    let mut open: Vec<&str> = vec![layer];
    while let Some(next) = open.pop() {
        let (name, direct) = LAYERS.iter().find(|l| l.0 == next).expect("the table names its layers");
        if all.insert(*name) {
            open.extend(*direct);
        }
    }
    all
}

/// The text with comments, strings and characters blanked: what is left is code.
fn code(text: &str) -> String {
    let b = text.as_bytes();
    let mut out = String::with_capacity(b.len());
    let mut i = 0;
    let until = |from: usize, end: &str| text[from..].find(end).map_or(b.len(), |n| from + n + end.len());
    while i < b.len() {
        let rest = &text[i..];
        let named = i > 0 && (b[i - 1].is_ascii_alphanumeric() || b[i - 1] == b'_');
        let raw = (!named && (rest.starts_with("r\"") || rest.starts_with("r#")))
            .then(|| rest[1..].bytes().take_while(|c| *c == b'#').count())
            .filter(|hashes| rest.as_bytes().get(1 + hashes) == Some(&b'"'));
        let end = if rest.starts_with("//") {
            until(i, "\n") - 1
        } else if rest.starts_with("/*") {
            until(i, "*/")
        } else if let Some(hashes) = raw {
            until(i + 2 + hashes, &format!("\"{}", "#".repeat(hashes)))
        } else if rest.starts_with('"') {
            quoted(b, i)
        } else if rest.starts_with("'\\") {
            until(i + 3, "'")
        } else if rest.starts_with('\'') && rest.chars().nth(2) == Some('\'') {
            i + rest.char_indices().nth(3).map_or(rest.len(), |c| c.0)
        } else {
            let c = rest.chars().next().expect("there is more");
            out.push(c);
            i += c.len_utf8();
            continue;
        };
        out.extend(text[i..end].chars().map(|c| if c == '\n' { c } else { ' ' }));
        i = end;
    }
    out
}

/// One past the string that starts at `start`.
fn quoted(b: &[u8], start: usize) -> usize {
    let mut i = start + 1;
    while i < b.len() && b[i] != b'"' {
        i += if b[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(b.len())
}

/// Code without its `#[cfg(test)]` items, and the names of the test modules kept in files of their own.
fn shipped(code: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let (mut kept, mut modules, mut rest) = (String::new(), Vec::new(), code);
    while let Some(at) = rest.find(MARK) {
        kept.push_str(&rest[..at]);
        let item = &rest[at + MARK.len()..];
        let end = item.find(['{', ';']).map_or(item.len(), |n| n + 1);
        let head = item[..end].trim();
        if let Some(name) = head.strip_suffix(';').and_then(|h| h.rsplit_once("mod ")) {
            modules.push(name.1.trim().to_string());
        }
        let mut depth = usize::from(head.ends_with('{'));
        let mut to = end;
        for (i, c) in item[end..].char_indices() {
            if depth == 0 {
                break;
            }
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            to = end + i + 1;
        }
        rest = &item[to..];
    }
    kept.push_str(rest);
    (kept, modules)
}

fn words(code: &str) -> Vec<&str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).collect()
}

/// What each path from `root` (such as `crate::`) names first, groups taken apart.
fn named_from(code: &str, root: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(root) {
        let before = rest[..at].chars().next_back();
        rest = &rest[at + root.len()..];
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let first = |text: &str| words(text.trim_start()).first().map(|w| (*w).to_string());
        match rest.strip_prefix('{') {
            None => found.extend(first(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut start = 0;
                for (i, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => {
                            found.extend(first(&group[start..i]));
                            break;
                        }
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            found.extend(first(&group[start..i]));
                            start = i + 1;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

/// What is wrong with one file; `place` is its path below `src`.
fn complaints(place: &Path, shipped: &str) -> Vec<String> {
    let parts: Vec<String> = place.with_extension("").iter().map(|p| p.to_string_lossy().into()).collect();
    let layer = parts[0].as_str();
    if ROOT.contains(&layer) {
        return Vec::new();
    }
    if !LAYERS.iter().any(|l| l.0 == layer) {
        return vec![format!("{}: no such layer as {layer}", place.display())];
    }
    let allowed = closure(layer);
    // How often `super::` may stand before it leaves the layer.
    let depth = parts.len() - usize::from(parts.last().is_some_and(|p| p == "mod"));
    let mut named = named_from(shipped, "crate::");
    named.extend(named_from(shipped, &"super::".repeat(depth)));
    let mut wrong: Vec<String> = named
        .iter()
        // What the root re-exports, `Error`, `Kind` and `Result`, is the layer error's.
        .filter(|name| !matches!(name.as_str(), "Error" | "Kind" | "Result"))
        .filter(|name| !allowed.contains(name.as_str()))
        .map(|name| format!("{} names {name}, which {layer} may not", place.display()))
        .collect();
    let words = words(shipped);
    let mut forbid = |allowed: bool, list: &[&str], why: &str| {
        if let Some(word) = words.iter().find(|w| !allowed && list.contains(w)) {
            wrong.push(format!("{} names {word}: {why}", place.display()));
        }
    };
    forbid(layer == "gpu", &["wgpu"], "only gpu speaks to the driver");
    forbid(
        FILES.contains(&layer),
        &["fs", "File", "OpenOptions", "memmap2"],
        "only data and what is built on it open files",
    );
    forbid(false, &["crossweave"], "the crate calls itself `crate`");
    wrong
}

fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir).expect("the sources").map(|e| e.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
}

#[test]
fn every_layer_names_only_what_it_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&root, "rs", &mut paths);
    let read: Vec<(PathBuf, String, Vec<String>)> = paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).expect("a source file");
            let (kept, modules) = shipped(&code(&text));
            (path.strip_prefix(&root).expect("below src").to_path_buf(), kept, modules)
        })
        .collect();
    let tests: BTreeSet<PathBuf> = read
        .iter()
        .flat_map(|(place, _, modules)| {
            let is_mod = place.file_stem().is_some_and(|s| s == "mod" || s == "lib" || s == "main");
            let home = if is_mod { place.with_file_name("") } else { place.with_extension("") };
            modules.iter().map(move |m| home.join(m).with_extension("rs"))
        })
        .collect();
    let checked: Vec<_> = read.iter().filter(|(place, ..)| !tests.contains(place)).collect();
    assert!(checked.len() > 30, "only {} files were found", checked.len());
    let wrong: Vec<String> = checked.iter().flat_map(|(place, kept, _)| complaints(place, kept)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Outside their layer nothing names a system: not in code, not in a string. The program's help has examples.
#[test]
fn no_other_layer_names_a_system() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names: Vec<&str> = crossweave::systems::kinds().iter().map(|kind| kind.name).collect();
    let mut paths = Vec::new();
    files(&root, "rs", &mut paths);
    let help = root.join("cli/mod.rs");
    let elsewhere = paths.iter().filter(|path| {
        !path.starts_with(root.join("systems")) && **path != help && !path.ends_with("tests.rs")
    });
    let mut found = Vec::new();
    for path in elsewhere {
        let text = fs::read_to_string(path).expect("a source file");
        let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (i, line) in shipped.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default().to_lowercase();
            if names.iter().any(|name| words(&line).contains(name)) {
                found.push(format!("{}:{}: {line}", path.display(), i + 1));
            }
        }
    }
    assert!(names.contains(&"dime") && found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_scanner_sees_what_is_forbidden() {
    let wrong = |place: &str, text: &str| complaints(Path::new(place), &shipped(&code(text)).0).len();
    assert_eq!(wrong("ops/map.rs", "use crate::tensor::Tensor; use crate::{gpu::Buf, host};"), 0);
    assert_eq!(wrong("ops/map.rs", "use crate::nn::Linear;"), 1);
    assert_eq!(wrong("ops/map.rs", "use crate::{gpu::{Buf, Gpu}, eval::rank, nn};"), 2);
    assert_eq!(wrong("ops/map.rs", "fn f() { crate::data::Batch::new(); }"), 1);
    assert_eq!(wrong("ops/map.rs", "use super::super::data::Batch; use super::codegen;"), 1);
    assert_eq!(wrong("ops/mod.rs", "use super::data::Batch;"), 1);
    assert_eq!(wrong("eval/rank/sum.rs", "use super::super::sims; use super::super::super::cli::plot;"), 1);
    assert_eq!(wrong("error.rs", "/// See [`crate::gpu::Gpu`].\nuse std::fmt;"), 0);
    assert_eq!(
        wrong("host/array.rs", "const A: &str = \"crate::nn\"; const B: char = '\"'; use crate::nn;"),
        1
    );
    assert_eq!(
        wrong("host/array.rs", "const A: &str = r#\"crate::nn \"\"#; fn f<'a>() {} use crate::nn;"),
        1
    );
    assert_eq!(wrong("data/x.rs", "#[cfg(test)]\nmod tests { use crate::ops::map; mod a {} }"), 0);
    assert_eq!(wrong("data/x.rs", "#[cfg(test)]\nmod tests { mod a {} }\nuse crate::ops::map;"), 1);
    assert_eq!(wrong("tensor/mod.rs", "fn f(d: &wgpu::Device) {}"), 1);
    assert_eq!(wrong("gpu/mod.rs", "fn f(d: &wgpu::Device) {}"), 0);
    assert_eq!(wrong("systems/dime.rs", "use std::{io, fs};"), 1);
    assert_eq!(wrong("nn/bert.rs", "std::fs::File::open(p)"), 1);
    assert_eq!(wrong("data/weights.rs", "std::fs::File::open(p)"), 0);
    assert_eq!(wrong("data/weights.rs", "use crossweave::ops::map;"), 1);
    assert_eq!(wrong("utils.rs", ""), 1);
    assert_eq!(shipped("#[cfg(test)]\nmod hostile;\nmod x;").1, ["hostile"]);
}

/// Shaders that take the functions of formulas besides the prelude, over four values or over one.
const FORMULAS: &[&str] =
    &["cross_attention", "cross_attention_scores", "cross_attention_steps", "map", "reduce"];
const FORMULAS_OF_ONE: &[&str] = &[
    "attention",
    "attention_keys",
    "attention_queries",
    "attention_rows",
    "cross_attention_shared",
    "generator",
    "modulate",
];

#[test]
fn every_shader_is_valid_on_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let file = |name: &str| fs::read_to_string(root.join(name)).expect("a shader");
    let used = |text: String| {
        let line = |line: &str| match line.strip_prefix("//: use ") {
            Some(part) => file(&format!("{part}.wgsl")),
            None => format!("{line}\n"),
        };
        text.lines().map(line).collect::<String>()
    };
    // A part that is used may use another.
    let read = |name: &str| used(used(file(name)));
    let (prelude, formulas) = (read("prelude.wgsl"), read("pointwise.wgsl"));
    let mut paths = Vec::new();
    files(&root, "wgsl", &mut paths);
    assert!(paths.len() > 10);
    let mut wrong = Vec::new();
    for path in paths {
        let name = path.file_stem().expect("a name").to_string_lossy().to_string();
        let text = match name.as_str() {
            "prelude" => prelude.clone(),
            n if FORMULAS_OF_ONE.contains(&n) => {
                let formulas = ["f32", "i32", "u32"].iter().fold(formulas.clone(), |text, t| {
                    text.replace(&format!("= vec4<{t}>"), &format!("= {t}"))
                });
                format!("{}\n{formulas}\n{prelude}", read(&format!("{n}.wgsl")))
            }
            n if FORMULAS.contains(&n) => format!("{}\n{formulas}\n{prelude}", read(&format!("{n}.wgsl"))),
            n => format!("{}\n{prelude}", read(&format!("{n}.wgsl"))),
        };
        if let Err(e) = valid(&text) {
            wrong.push(format!("{name}.wgsl: {e}"));
        }
        let marks: Vec<&str> = text.lines().filter(|line| line.starts_with("//: ")).collect();
        let (blocks, ends) = (marks.len(), marks.iter().filter(|mark| **mark == "//: end").count());
        if blocks != 2 * ends {
            wrong.push(format!("{name}.wgsl: a replaced part without its end"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(valid("fn f() -> f32 { return 1u; }").is_err());
}

fn valid(text: &str) -> Result<(), String> {
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let mut capabilities = Capabilities::empty();
    if text.contains("enable wgpu_cooperative_matrix;") {
        capabilities |=
            Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
    }
    Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map(|_| ())
        .map_err(|e| e.emit_to_string(text))
}
