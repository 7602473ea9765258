//! Picture files as a model of one size reads them: in evaluation the middle of the picture, in training a
//! random part of it, normalised. What PIL and torchvision make of a decoded picture is made here to the bit.
//!
//! A JPEG's pixels are the decoder's, which may differ from libjpeg's by a few grey levels. Of 16 bits a
//! sample, the upper eight are kept.

mod cache;
mod crop;
mod decode;
mod header;
mod resize;

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cache::{About, Cache};
use header::Header;

pub use crop::{
    LEAST_SHARE, MEAN, Normal, STD, evaluation_sides, evaluation_view, middle, resized_to, training_area,
    training_view,
};
pub use decode::{Rgb, decode, read_file};
pub use header::{MAX_BYTES, MAX_FILE, MAX_PIXELS};
pub use resize::{Area, crop_resize, resize, resize_part};

use super::atomic;
use crate::host::Rng;
use crate::{Error, Kind, Result};

/// Files that one error names.
const NAMED: usize = 10;
/// Threads that look at headers: more would only wait for the disk.
const LOOKING: usize = 8;
/// Pictures that each thread makes between two reports while a cache is made.
const EACH: usize = 8;

/// Picture files as a model of one size reads them.
#[derive(Debug)]
pub struct Pictures {
    files: Vec<PathBuf>,
    /// Width and height of each as it is read.
    sides: Vec<[u32; 2]>,
    size: usize,
    as_stored: bool,
    /// The least share of a picture that a random part covers.
    least: f64,
    normal: Normal,
    cache: Option<Cache>,
}

/// One picture, and how it is seen.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its number.
    pub picture: usize,
    /// What training draws its part from; nothing: as evaluation sees it.
    pub draws: Option<Rng>,
}

impl Pictures {
    /// Looks at the beginning of every file. `size` is the width and height of what is read; pictures are
    /// turned upright by their EXIF orientation unless `as_stored`.
    ///
    /// # Errors
    /// Files that are missing, begin like no PNG or JPEG, or are too large (see [`decode`]): one error of all
    /// of them.
    pub fn open(files: Vec<PathBuf>, size: usize, as_stored: bool) -> Result<Self> {
        if size == 0 {
            return Err(Error::new("pictures cannot be read at a size of 0").cure("give a size of 1 or more"));
        }
        let mut looked: Vec<Result<[u32; 2]>> = files.iter().map(|_| Ok([0; 2])).collect();
        spread(files.iter().zip(&mut looked), cores().min(LOOKING), |(path, to)| {
            *to = look(path, as_stored);
            Ok(())
        })?;
        let mut sides = Vec::with_capacity(files.len());
        let mut wrong = Vec::new();
        for one in looked {
            match one {
                Ok(found) => sides.push(found),
                Err(e) => wrong.push(e),
            }
        }
        match wrong.len() {
            0 => Ok(Self {
                files,
                sides,
                size,
                as_stored,
                least: LEAST_SHARE,
                normal: Normal::default(),
                cache: None,
            }),
            1 => Err(wrong.remove(0)),
            _ => Err(all_of(&wrong, files.len())),
        }
    }

    /// The same pictures; training reads random parts of at least this share of them.
    pub fn cropped(self, least: f64) -> Self {
        Self { least, ..self }
    }

    /// Files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The file of a picture.
    pub fn file(&self, picture: usize) -> &Path {
        &self.files[picture]
    }

    /// Width and height of what is read of every picture.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Width and height in pixels of a picture, upright unless pictures are read as they are stored.
    pub fn dimensions(&self, picture: usize) -> [usize; 2] {
        self.sides[picture].map(|side| side as usize)
    }

    /// Reads pictures on some threads, in the order asked: `[n, 3, size, size]`, normalised. What is read
    /// does not depend on the number of threads.
    ///
    /// # Errors
    /// The first picture that cannot be read, by its file.
    pub fn read(&self, asked: &[Asked], threads: usize) -> Result<Vec<f32>> {
        let each = 3 * self.size * self.size;
        let mut out = vec![0.0; each * asked.len()];
        let places = asked.iter().zip(out.chunks_exact_mut(each));
        spread(places, threads, |(asked, out)| self.read_one(asked, out))?;
        Ok(out)
    }

    fn read_one(&self, asked: &Asked, out: &mut [f32]) -> Result<()> {
        let path = self.files.get(asked.picture).ok_or_else(|| {
            let found = format!("picture {} of {}", asked.picture, self.files.len());
            Error::new("there is no such picture").found(found).cure("count pictures from 0")
        })?;
        match &asked.draws {
            Some(draws) => {
                let picture = read_file(path, self.as_stored)?;
                let (seen, mirrored) = training_view(&picture, self.size, self.least, &mut draws.clone());
                self.normal.write(&seen.pixels, self.size, mirrored, out);
            }
            None => match self.cache.as_ref().and_then(|cache| cache.picture(asked.picture)) {
                Some(pixels) => self.normal.write(pixels, self.size, false, out),
                // A cache whose bytes have changed is only slow.
                None => self.normal.write(&self.seen(path)?.pixels, self.size, false, out),
            },
        }
        Ok(())
    }

    /// What evaluation sees of a file.
    fn seen(&self, path: &Path) -> Result<Rgb> {
        let picture = read_file(path, self.as_stored)?;
        Ok(evaluation_view(&picture, resized_to(self.size), self.size))
    }

    /// From now on what evaluation sees comes from a mapped file of bytes. It is made on some threads if it
    /// is not there, is damaged, or was made of other files (by path, length and time of change), at another
    /// size or orientation. `stop` ends the making; `tell` hears how many of how many pictures are done.
    ///
    /// # Errors
    /// A picture that cannot be read, a file that cannot be written, or `stop`: no file is then left, or the
    /// former one.
    pub fn cached(
        mut self,
        file: &Path,
        threads: usize,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let about = About::of(&self.files, self.size, self.as_stored)?;
        self.cache = Cache::open(file, about);
        if self.cache.is_none() {
            self.make(file, &about, threads.max(1), stop, tell)?;
            let made = Cache::open(file, about).ok_or_else(|| {
                Error::new("the file of resized pictures is not as it was written")
                    .at(file.display())
                    .cure("check that disk, or name a file on another one")
            });
            self.cache = Some(made?);
        }
        Ok(self)
    }

    fn make(
        &self,
        file: &Path,
        about: &About,
        threads: usize,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let total = self.len();
        let mut failed = None;
        let written = atomic::file(file, |out| {
            tell(0, total);
            about.begin(out)?;
            for start in (0..total).step_by(EACH * threads) {
                let part = start..total.min(start + EACH * threads);
                let mut seen = vec![Vec::new(); part.len()];
                let made = if stop() {
                    Err(Error::of(Kind::Interrupted, "interrupted"))
                } else {
                    spread(part.clone().zip(&mut seen), threads, |(picture, to)| {
                        *to = self.seen(&self.files[picture])?.pixels;
                        Ok(())
                    })
                };
                if let Err(e) = made {
                    failed = Some(e);
                    return Err(std::io::Error::other("no pictures"));
                }
                for (picture, pixels) in part.clone().zip(&seen) {
                    about.write(picture, pixels, out)?;
                }
                tell(part.end, total);
            }
            Ok(())
        });
        failed.map_or(written, Err)
    }
}

/// A picture's width and height, by its header.
fn look(path: &Path, as_stored: bool) -> Result<[u32; 2]> {
    let file = decode::open(path)?;
    let header = Header::read(&mut BufReader::new(file)).map_err(|e| e.at(path.display()))?;
    let sides = if as_stored { header.stored } else { header.upright() };
    Ok(sides.map(|side| side as u32))
}

fn all_of(wrong: &[Error], of: usize) -> Error {
    let mut found = String::new();
    for error in wrong.iter().take(NAMED) {
        found += &format!("\n    {}", error.to_string().replace('\n', "\n    "));
    }
    if wrong.len() > NAMED {
        found += &format!("\n    and {} more", wrong.len() - NAMED);
    }
    Error::new(format!("{} of {of} pictures cannot be read", wrong.len()))
        .found(found)
        .cure("as each of them says, or leave them out of the data")
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does work on items in order, on some threads. No item is begun after one has failed; of those that did,
/// the error is the first one's, so that it is the same on any number of threads.
fn spread<T: Send, I: ExactSizeIterator<Item = T> + Send>(
    items: I,
    threads: usize,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    const HELD: &str = "no thread panics while it holds this";
    let threads = threads.min(items.len());
    let items = Mutex::new(items.enumerate());
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let run = || {
        while failed.lock().expect(HELD).is_none() {
            let next = items.lock().expect(HELD).next();
            let Some((i, item)) = next else { return };
            if let Err(e) = work(item) {
                let mut first = failed.lock().expect(HELD);
                if first.as_ref().is_none_or(|(before, _)| i < *before) {
                    *first = Some((i, e));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    failed.into_inner().expect(HELD).map_or(Ok(()), |(_, e)| Err(e))
}
