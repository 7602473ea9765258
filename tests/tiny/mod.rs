//! A few images of emojitiny with their captions, the smallest DIME over them, and the program run on both.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_crossweave");
pub const EMOJITINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/emojitiny_precomp");
/// Regions of an image and numbers of a region.
pub const SHAPE: [usize; 2] = [36, 64];
/// Captions of the training split over the batch size.
pub const STEPS_PER_EPOCH: u64 = 15;
/// The element of an array of images' sizes.
pub const SIZES: &str = "[('image_w', '<i4'), ('image_h', '<i4')]";
/// Everything about the model and the batches.
pub const MODEL: &str = "--direction t2i --extra_img 1 --lambda_softmax 9 --max_words 12 --embed_size 8 \
    --num_head_IMRC 2 --hid_IMRC 8 --hid_router 8 --bert-init random --bert-layers 1 --bert-hidden 16 \
    --bert-heads 2 --bert-intermediate 32 --vocab-size 120 --batch_size 4 --learning_rate 1e-3 --log_step 1 \
    --val_step 1000";

/// A folder with data in `data/tiny` and room for runs.
pub struct Tiny(TempDir);

/// How the program ended, and what it said.
pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Asserts a status, showing what was said.
    #[track_caller]
    pub fn with(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{}\n{}", self.out, self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }
}

/// The header of a little-endian `.npy` file.
pub fn npy_header(element: &str, fortran: &str, shape: &str) -> Vec<u8> {
    let element = if element.starts_with('[') { element.to_owned() } else { format!("'{element}'") };
    let text = format!("{{'descr': {element}, 'fortran_order': {fortran}, 'shape': ({shape}), }}");
    let width = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((width as u16).to_le_bytes());
    bytes.extend(format!("{text:<0$}\n", width - 1).bytes());
    bytes
}

/// Writes features `[images, 36, 64]` of f32.
pub fn write_features(path: &Path, values: &[f32]) {
    let images = values.len() / (SHAPE[0] * SHAPE[1]);
    let mut bytes = npy_header("<f4", "False", &format!("{images}, {}, {}", SHAPE[0], SHAPE[1]));
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(path, bytes).expect("written");
}

impl Tiny {
    /// 12 images to train on, 4 of dev, 6 of test, five captions each.
    pub fn new() -> Self {
        let tiny = Self(tempfile::tempdir().expect("a folder"));
        std::fs::create_dir_all(tiny.data()).expect("made");
        for (split, images) in [("train", 12), ("dev", 4), ("test", 6)] {
            let bytes = std::fs::read(format!("{EMOJITINY}/{split}_ims.npy")).expect("emojitiny");
            let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            let row = 2 * SHAPE[0] * SHAPE[1];
            let mut own = npy_header("<f2", "False", &format!("{images}, {}, {}", SHAPE[0], SHAPE[1]));
            own.extend(&bytes[start..start + images * row]);
            std::fs::write(tiny.features(split), own).expect("written");
            let text = std::fs::read_to_string(format!("{EMOJITINY}/{split}_caps.txt")).expect("emojitiny");
            let lines: String = text.lines().take(5 * images).map(|line| format!("{line}\n")).collect();
            std::fs::write(tiny.captions(split), lines).expect("written");
        }
        tiny
    }

    /// Adds what a system of words reads: word ids with their vocabulary, dependency pairs, boxes and sizes.
    pub fn with_words(self) -> Self {
        for (split, images) in [("train", 12), ("dev", 4), ("test", 6)] {
            let text =
                std::fs::read_to_string(format!("{EMOJITINY}/{split}_precaps_stan.txt")).expect("emojitiny");
            let lines: String = text.lines().take(5 * images).map(|line| format!("{line}\n")).collect();
            std::fs::write(self.file(split, "precaps_stan.txt"), lines).expect("written");
            let text = std::fs::read_to_string(format!("{EMOJITINY}/{split}_caps.json")).expect("emojitiny");
            let pairs: Vec<Value> = serde_json::from_str(&text).expect("pairs");
            std::fs::write(self.file(split, "caps.json"), Value::from(&pairs[..5 * images]).to_string())
                .expect("written");
            for (name, row) in [("ims_bbx.npy", 4 * SHAPE[0] * 4), ("ims_size.npy", 2 * 4)] {
                let bytes = std::fs::read(format!("{EMOJITINY}/{split}_{name}")).expect("emojitiny");
                let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
                let mut own = match row {
                    8 => npy_header(SIZES, "False", &format!("{images},")),
                    _ => npy_header("<f4", "False", &format!("{images}, {}, 4", SHAPE[0])),
                };
                own.extend(&bytes[start..start + images * row]);
                std::fs::write(self.file(split, name), own).expect("written");
            }
        }
        let vocabulary = format!("{EMOJITINY}/emojitiny_precomp_vocab.json");
        std::fs::copy(vocabulary, self.data().join("tiny_vocab.json")).expect("copied");
        self
    }

    /// Adds the same images as pictures, with the captions in Karpathy's form.
    pub fn with_pictures(self) -> Self {
        let text = std::fs::read_to_string(format!("{EMOJITINY}/dataset_emojitiny.json")).expect("emojitiny");
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let mut kept = Vec::new();
        std::fs::create_dir_all(self.data().join("images")).expect("made");
        for (split, images) in [("train", 12), ("val", 4), ("test", 6)] {
            let of_split = all["images"].as_array().expect("images").iter().filter(|i| i["split"] == split);
            for image in of_split.take(images) {
                let name = image["filename"].as_str().expect("a name");
                let from = format!("{EMOJITINY}/images/{name}");
                std::fs::copy(from, self.data().join("images").join(name)).expect("copied");
                kept.push(image.clone());
            }
        }
        let json = serde_json::json!({"images": kept});
        std::fs::write(self.data().join("dataset_tiny.json"), json.to_string()).expect("written");
        self
    }

    /// A file of a split.
    pub fn file(&self, split: &str, name: &str) -> PathBuf {
        self.data().join(format!("{split}_{name}"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data/tiny")
    }

    pub fn features(&self, split: &str) -> PathBuf {
        self.data().join(format!("{split}_ims.npy"))
    }

    pub fn captions(&self, split: &str) -> PathBuf {
        self.data().join(format!("{split}_caps.txt"))
    }

    /// The program with these arguments, in the folder.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// Runs the program.
    pub fn run(&self, args: &str) -> Said {
        said(&mut self.command(args))
    }

    /// The arguments that train the smallest model.
    pub fn training(run: &str, more: &str) -> String {
        format!("train --data_path data --data_name tiny --logger_name {run} {MODEL} {more}")
    }

    /// Trains, and expects the best.
    #[track_caller]
    pub fn train(&self, run: &str, more: &str) -> Said {
        self.run(&Self::training(run, more)).with(0)
    }

    /// The rows of a run's metrics.
    pub fn rows(&self, run: &str) -> Vec<Value> {
        crossweave::train::metrics::read(&self.path(run).join("metrics.jsonl")).expect("metrics")
    }

    /// The rows of steps: everything in them is decided by the seed.
    pub fn steps(&self, run: &str) -> Vec<Value> {
        self.rows(run).into_iter().filter(|row| row.get("val").is_none()).collect()
    }
}

/// Runs a command to its end.
pub fn said(command: &mut Command) -> Said {
    let output = command.output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { status: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}
