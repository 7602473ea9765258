//! A split whose images are pictures.

use std::path::{Path, PathBuf};

use super::{Dataset, Layout, Options, Source};
use crate::data::captioned::{self, Captioned};
use crate::data::captions::read_limited;
use crate::data::pictures::{Asked, MAX_FILE, Pictures};
use crate::host::Inputs;
use crate::{Error, Result};

/// Picture files, and once a model is known, what it reads of them.
#[derive(Debug)]
pub(super) struct Files {
    files: Vec<PathBuf>,
    open: Option<Pictures>,
}

impl Files {
    pub(super) fn truncate(&mut self, n: usize) {
        self.files.truncate(n);
    }

    pub(super) fn open(&mut self, inputs: &Inputs) -> Result<()> {
        let open = Pictures::open(self.files.clone(), inputs.image_size, inputs.as_stored)?;
        self.open = Some(open.cropped(inputs.crop));
        Ok(())
    }

    /// A file as it is stored.
    pub(super) fn bytes(&self, picture: usize) -> Result<Vec<u8>> {
        read_limited(&self.files[picture], MAX_FILE, "the picture")
    }

    pub(super) fn describe(&self) -> String {
        match &self.open {
            Some(open) => format!("pictures read at {0} x {0}", open.size()),
            None => "pictures".into(),
        }
    }
}

impl Dataset {
    pub(super) fn of_pictures(folder: &Path, split: &str, options: &Options) -> Result<Self> {
        let Captioned { files, texts, captions_per_image, notices, odd } =
            captioned::open(folder, split, options.captions_per_image)?;
        if options.strict && odd > 0 {
            return Err(Error::new("the captions are not clean")
                .at(folder.display())
                .expected("non-empty captions in UTF-8")
                .found(notices[notices.len() - odd..].join("; "))
                .cure("correct these captions, or leave out --strict"));
        }
        let captions = texts.len();
        let data = Self {
            folder: folder.to_path_buf(),
            split: split.to_owned(),
            source: Source::Pictures(Box::new(Files { files, open: None })),
            texts,
            ids: None,
            captions,
            whole: captions,
            boxes: None,
            pairs: None,
            notices,
            layout: Layout { captions_per_image, rows_per_image: 1 },
        };
        Ok(data.limited(options.limit))
    }

    /// Reads pictures on all cores: their width and height, and `[n, 3, size, size]` in the order asked.
    ///
    /// # Errors
    /// A picture that cannot be read; data without pictures, or whose pictures no model was prepared for.
    pub fn pictures(&self, asked: &[Asked]) -> Result<(usize, Vec<f32>)> {
        let open = match &self.source {
            Source::Pictures(files) => files.open.as_ref(),
            Source::Features(_) => None,
        };
        let open =
            open.ok_or_else(|| Error::new("no pictures are open: prepare the data for a model first"))?;
        Ok((open.size(), open.read(asked, cores())?))
    }

    /// From now on, what evaluation sees of pictures comes from a file of them, which is made if it is not there as it
    /// should be; `stop` ends that, `tell` hears how many of how many are done. Of features nothing is made.
    ///
    /// # Errors
    /// As [`Pictures::cached`].
    pub fn keep_pictures(
        &mut self,
        file: &Path,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        if let Source::Pictures(files) = &mut self.source
            && let Some(open) = files.open.take()
        {
            files.open = Some(open.cached(file, cores(), stop, tell)?);
        }
        Ok(())
    }

    /// The names of pictures' files below the folder, in order; nothing for features.
    pub fn picture_names(&self) -> Option<Vec<String>> {
        let Source::Pictures(files) = &self.source else { return None };
        Some(files.files.iter().map(|path| captioned::name_of(&self.folder, path)).collect())
    }
}

/// Threads that decode.
pub(in crate::data) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
