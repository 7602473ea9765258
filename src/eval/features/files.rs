//! The files of a folder of features, and the folder while it is made.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;

use crate::data::atomic;
use crate::data::pictures::{evaluation_sides, middle, resized_to};
use crate::data::recipe::{self, Recipe};
use crate::data::weights::listing;
use crate::error::{Error, Kind, Result};
use crate::eval::sims::npy_header;

/// What the folder's name ends in until it is whole.
const PARTIAL: &str = ".partial";

/// Where a folder is made.
pub(super) struct Place {
    out: PathBuf,
    partial: PathBuf,
}

/// The right to write a folder that is being made, as long as the process lives.
pub(super) struct Held {
    place: Place,
    /// `None` on a file system that knows no locks.
    _lock: Option<File>,
}

impl Place {
    /// # Errors
    /// Something is there already; a path that names no folder.
    pub(super) fn of(out: &Path) -> Result<Self> {
        let Some(name) = out.file_name() else {
            return Err(Error::new("this path names no folder")
                .at(out.display())
                .cure("give the name of a folder to make: --out DATA"));
        };
        atomic::refuse_existing(out)?;
        let mut partial = name.to_owned();
        partial.push(PARTIAL);
        Ok(Self { out: out.to_path_buf(), partial: out.with_file_name(partial) })
    }

    /// The name of the folder's vocabulary.
    pub(super) fn vocabulary(&self) -> String {
        format!("{}_vocab.json", self.out.file_name().unwrap_or_default().to_string_lossy())
    }

    /// Makes the folder, or takes up what an earlier call began.
    ///
    /// # Errors
    /// What was begun are other features, another process makes them, or the folder cannot be made.
    pub(super) fn begin(self, recipe: &Recipe) -> Result<Held> {
        let partial = &self.partial;
        match Recipe::open(partial)? {
            Some(begun) => {
                let differing = begun.all_differences(recipe);
                if !differing.is_empty() {
                    return Err(Error::new("other features were begun here")
                        .at(partial.display())
                        .found(listing(&differing))
                        .cure("give the options and the data of before to go on, or remove that folder"));
                }
            }
            None if left(partial).any(|name| !is_temporary(&name)) => {
                return Err(Error::new("this folder is in the way")
                    .at(partial.display())
                    .cure("remove it, or give another --out"));
            }
            None => {
                fs::create_dir_all(partial).map_err(|e| Error::io("make the folder", partial, &e))?;
                recipe.save(partial)?;
            }
        }
        let lock = lock(partial)?;
        // What a process that was killed was writing.
        for name in left(partial).filter(|name| is_temporary(name)) {
            let path = partial.join(name);
            fs::remove_file(&path).map_err(|e| Error::io("remove the file", &path, &e))?;
        }
        Ok(Held { place: self, _lock: lock })
    }
}

impl Held {
    /// Where a file goes.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.place.partial.join(name)
    }

    /// Writes a small file, whole or not at all.
    ///
    /// # Errors
    /// A failed write.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        atomic::file(&self.file(name), |out| out.write_all(bytes))
    }

    /// Gives the folder, which is whole, its name.
    ///
    /// # Errors
    /// Something is there by now; a failed rename.
    pub(super) fn finish(self) -> Result<()> {
        let Self { place: Place { out, partial }, _lock: lock } = self;
        // Some systems rename no folder with open files.
        drop(lock);
        atomic::refuse_existing(&out)?;
        fs::rename(&partial, &out).map_err(|e| Error::io("give the folder its name", &out, &e))
    }
}

/// The names in a folder.
fn left(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Whether [`atomic`] writes files of such names until they are whole.
fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

fn lock(partial: &Path) -> Result<Option<File>> {
    let path = partial.join(recipe::FILE);
    let file = File::open(&path).map_err(|e| Error::io("lock the folder", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Error::new("another process makes these features")
            .at(partial.display())
            .cure("wait until it ends, or stop it; the same command then goes on")),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// A file of features that grows by rows.
pub(super) struct Rows {
    path: PathBuf,
    file: File,
    f32: bool,
    done: usize,
}

impl Rows {
    /// Opens a file of so many rows, regions and numbers, and keeps the whole batches of what it has.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn open(path: PathBuf, shape: [usize; 3], f32: bool, batch: usize) -> Result<Self> {
        let io = |e| Error::io("write the features", &path, &e);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let header = npy_header(if f32 { "<f4" } else { "<f2" }, &shape);
        let (start, row) = (header.len() as u64, (shape[1] * shape[2] * if f32 { 4 } else { 2 }) as u64);
        let held = file.metadata().map_err(io)?.len().saturating_sub(start) / row;
        let rows = shape[0];
        let held = usize::try_from(held).unwrap_or(0);
        let done = if held == rows { rows } else { held.min(rows) / batch * batch };
        if done == 0 {
            file.set_len(0).and_then(|()| file.write_all(&header)).map_err(io)?;
        }
        let end = start + done as u64 * row;
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(io)?;
        Ok(Self { path, file, f32, done })
    }

    /// Rows that are there.
    pub(super) fn done(&self) -> usize {
        self.done
    }

    /// Appends a batch of so many rows; `file` names the picture of a row.
    ///
    /// # Errors
    /// Numbers that are not finite, a failed write: what is there stays.
    pub(super) fn append(
        &mut self,
        values: &[f32],
        rows: usize,
        file: impl Fn(usize) -> PathBuf,
    ) -> Result<()> {
        let fits = |v: &f32| if self.f32 { v.is_finite() } else { f16::from_f32(*v).is_finite() };
        if let Some(bad) = values.iter().position(|v| !fits(v)) {
            let picture = file(self.done + bad / (values.len() / rows));
            let error = Error::of(Kind::NonFinite, "a feature is no finite number")
                .at(picture.display())
                .found(values[bad]);
            return Err(match values[bad].is_finite() {
                true => error.expected("at most 65504, the largest in f16").cure("give --f32"),
                false => error.cure("give another encoder, or leave this picture out"),
            });
        }
        let bytes: Vec<u8> = match self.f32 {
            true => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            false => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        };
        self.file.write_all(&bytes).map_err(|e| Error::io("write the features", &self.path, &e))?;
        self.done += rows;
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// A disk that does not take what was written.
    pub(super) fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("write the features", &self.path, &e))
    }
}

/// A file of boxes, of pictures of these widths and heights.
pub(super) fn boxes(sides: &[[usize; 2]], size: usize, grid: usize) -> Vec<u8> {
    let mut bytes = npy_header("<f4", &[sides.len(), grid * grid, 4]);
    let all = sides.iter().flat_map(|sides| cells(*sides, size, grid));
    bytes.extend(all.flatten().flat_map(f32::to_le_bytes));
    bytes
}

/// A file of widths and heights.
pub(super) fn sizes(sides: &[[usize; 2]]) -> Vec<u8> {
    let mut bytes = npy_header("[('image_w', '<i4'), ('image_h', '<i4')]", &[sides.len()]);
    bytes.extend(sides.iter().flatten().flat_map(|side| (*side as i32).to_le_bytes()));
    bytes
}

/// The boxes x1, y1, x2, y2, in a picture's own pixels, of the cells of a grid over what evaluation sees of it at a size,
/// row by row.
fn cells(sides: [usize; 2], size: usize, grid: usize) -> Vec<[f32; 4]> {
    let resized = evaluation_sides(sides, resized_to(size));
    let seen = middle(resized, size);
    let edge = |axis: usize, cell: usize| {
        let at = [seen.left, seen.top][axis] as f64 + (cell * size) as f64 / grid as f64;
        (at * sides[axis] as f64 / resized[axis] as f64) as f32
    };
    let cell = |i: usize| {
        let (x, y) = (i % grid, i / grid);
        [edge(0, x), edge(1, y), edge(0, x + 1), edge(1, y + 1)]
    };
    (0..grid * grid).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At 224 the shorter side becomes 256. Twice as wide as high: 512 x 256, the middle begins at 144 and 16.
    #[test]
    fn cells_are_where_the_picture_was_seen() {
        let wide = [[72.0, 8.0, 128.0, 64.0], [128.0, 8.0, 184.0, 64.0], [72.0, 64.0, 128.0, 120.0]];
        assert_eq!(cells([256, 128], 224, 2)[..3], wide);
        let tall = cells([128, 256], 224, 2);
        assert_eq!((tall[0], tall[3]), ([8.0, 72.0, 64.0, 128.0], [64.0, 128.0, 120.0, 184.0]));
        // The other way, a picture is made smaller.
        assert_eq!(cells([1024, 1024], 224, 7)[8], [192.0, 192.0, 320.0, 320.0]);
        for sides in [[1, 1], [3, 1000], [640, 427], [65_000, 1]] {
            let [width, height] = sides.map(|side| side as f32);
            for [x1, y1, x2, y2] in cells(sides, 96, 3) {
                assert!(0.0 <= x1 && x1 < x2 && x2 <= width && 0.0 <= y1 && y1 < y2 && y2 <= height);
            }
        }
    }

    #[test]
    fn a_file_keeps_its_whole_batches() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.npy");
        let open = || Rows::open(path.clone(), [5, 2, 1], false, 2).expect("opened");
        let none = |_| PathBuf::new();
        let mut rows = open();
        rows.append(&[1.0; 4], 2, none).expect("written");
        rows.append(&[2.0; 4], 2, none).expect("written");
        let whole = fs::read(&path).expect("there");
        // A batch cut short goes, a whole one stays.
        fs::write(&path, &whole[..whole.len() - 1]).expect("written");
        assert_eq!(open().done(), 2);
        let mut rows = open();
        rows.append(&[2.0; 4], 2, none).expect("written");
        assert_eq!(fs::read(&path).expect("there"), whole);
        rows.append(&[3.0; 2], 1, none).expect("written");
        rows.finish().expect("written");
        assert_eq!(open().done(), 5);
        for cut in [0, 3, 100] {
            fs::write(&path, &whole[..cut]).expect("written");
            assert_eq!((open().done(), fs::read(&path).expect("there").len()), (0, 128));
        }
    }

    #[test]
    fn a_number_past_f16_names_its_picture_and_the_way_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |f32| Rows::open(folder.path().join("x"), [3, 1, 2], f32, 1).expect("opened");
        let append = |f32, value| open(f32).append(&[0.0, 1.0, value, 0.0], 2, |row| row.to_string().into());
        let error = append(false, 7e4).expect_err("too large").to_string();
        assert!(error.starts_with("1: ") && error.contains("--f32"), "{error}");
        append(true, 7e4).expect("fits");
        assert!(append(true, f32::NAN).expect_err("no number").to_string().contains("another encoder"));
    }
}
