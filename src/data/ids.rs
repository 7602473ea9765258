//! Names of a split's images: `{split}_ids.txt`, where the folder has one.
//!
//! Two layouts exist: a line an image, and a line a caption, where an image's lines agree (Flickr30K's `NAME#0` to
//! `NAME#4` too).

use std::path::Path;

use super::captions::read_limited;
use crate::{Error, Result};

/// The largest file of names read.
const MAX_FILE: u64 = 256 << 20;

/// The images' names, in order; `None` where there is no such file.
///
/// # Errors
/// A file that cannot be read, a number of lines that is neither that of images nor of captions, lines of one image
/// that name several.
pub fn names(folder: &Path, split: &str, images: usize, captions: usize) -> Result<Option<Vec<String>>> {
    let path = folder.join(format!("{split}_ids.txt"));
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_limited(&path, MAX_FILE, "the images' names")?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.trim_end().lines().map(str::trim).collect();
    let names = of_lines(&lines, images, captions).map_err(|e| e.at(path.display()))?;
    Ok(Some(names))
}

fn of_lines(lines: &[&str], images: usize, captions: usize) -> Result<Vec<String>> {
    if lines.len() == images {
        return Ok(lines.iter().map(|line| (*line).to_owned()).collect());
    }
    if lines.len() != captions || images == 0 {
        return Err(Error::new("the images' names do not match the images in number")
            .expected(format!("{images} lines, one an image, or {captions}, one a caption"))
            .found(format!("{} lines", lines.len()))
            .cure("write the names in the order of the features, or remove the file: only --show reads it"));
    }
    let k = captions / images;
    let name = |line: usize| match lines[line].rsplit_once('#') {
        Some((name, number)) if number.parse::<usize>().is_ok() => name,
        _ => lines[line],
    };
    if let Some(line) = (0..captions).find(|line| name(*line) != name(line / k * k)) {
        return Err(Error::new("captions of one image name different images")
            .expected(format!("the same name on lines {} to {}", line / k * k + 1, line / k * k + k))
            .found(format!("\"{}\" on line {}", name(line), line + 1))
            .cure("write the names in the order of the captions, or remove the file: only --show reads it"));
    }
    Ok((0..images).map(|image| name(image * k).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_an_image_and_a_line_a_caption_name_the_same() {
        let named = |lines: &[&str]| of_lines(lines, 2, 4);
        let wanted = ["a.jpg", "b.jpg"];
        assert_eq!(named(&wanted).expect("a line an image"), wanted);
        assert_eq!(named(&["a.jpg", "a.jpg", "b.jpg", "b.jpg"]).expect("a line a caption"), wanted);
        assert_eq!(named(&["a.jpg#0", "a.jpg#1", "b.jpg#0", "b.jpg#1"]).expect("numbered"), wanted);
        let refused = |lines: &[&str]| named(lines).expect_err("wrong").to_string();
        assert!(refused(&["a", "b", "b"]).contains("found: 3 lines"));
        let e = refused(&["a", "a", "b", "c"]);
        assert!(e.contains("lines 3 to 4") && e.contains("\"c\" on line 4"), "{e}");
    }
}
