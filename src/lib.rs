//! Trains and evaluates image-text matching models on any GPU that wgpu reaches.
//!
//! A [`tensor::Tensor`] is a shape and a buffer, on a GPU in f32 or on the host in f64. Every op is one file: what
//! it dispatches, the plain f64 loops that define it, its gradient written with other ops, and the cases it is
//! tested on. Calling an op records one dispatch at once and, where an input is tracked, one node on a flat
//! [`tensor::Tape`]; `backward` walks the tape from its end and frees what it passes. Pointwise work is a Rust
//! closure over [`ops::Expr`]: shader, reference and derivative all come from that one formula. Model code does
//! not know the side it runs on, so the host in f64 is the twin that every GPU result is held against.
//!
//! # First steps
//! Train a small DIME, open its best weights on a device, encode a few images and captions, and ask which caption
//! describes the first image:
//! ```
//! use std::sync::atomic::AtomicBool;
//!
//! use crossweave::data::dataset::{self, Dataset};
//! use crossweave::eval::encoded::{Encoded, Scored};
//! use crossweave::eval::model::Model;
//! use crossweave::gpu::{Gpu, Options};
//! use crossweave::tensor::Device;
//! use crossweave::train::{Event, options::TrainOptions, run};
//!
//! # let folder = tempfile::tempdir().expect("a folder");
//! # let run = folder.path().join("run");
//! # let name = run.to_str().expect("UTF-8");
//! // The command line's options; a real model is larger, and trains for longer.
//! let mut options = vec!["--data_path", "tests/data", "--data_name", "emojitiny_precomp", "--logger_name", name];
//! options.extend("--direction t2i --extra_img 1 --lambda_softmax 9 --embed_size 8 --num_head_IMRC 2".split(' '));
//! options.extend("--hid_IMRC 8 --hid_router 8 --batch_size 4 --dev-limit 10 --max-steps 4".split(' '));
//! options.extend("--bert-init random --bert-layers 1 --bert-hidden 16 --bert-heads 2".split(' '));
//! run::train(TrainOptions::of(&options)?, &AtomicBool::new(false), &mut |event| {
//!     if let Event::Validation { step, metrics, .. } = event {
//!         println!("after {step} steps: rsum {:.1}", metrics.rsum());
//!     }
//! })?;
//!
//! let device = Device::Gpu(Gpu::open(&Options::default())?);
//! let model = Model::open(&run, None, &device)?;
//! let few = dataset::Options { limit: Some(20), ..Default::default() };
//! let mut data = Dataset::open("tests/data/emojitiny_precomp".as_ref(), "test", &few)?;
//! let inputs = model.system.inputs();
//! data.prepare(&inputs, &model.tokenizer)?;
//! let tokens = data.tokens(&model.tokenizer, inputs.max_words)?;
//! let how = Scored { folds: false, before: 0 };
//! let encoded = Encoded::new(&model, &data, &tokens, None, how, &device, &|| false)?;
//! let scores = encoded.score(&model, &device, None, &|| false, &mut |_| ())?;
//! let of_first = &scores[..data.captions()];
//! let best = (0..data.captions()).max_by(|a, b| of_first[*a].total_cmp(&of_first[*b])).expect("captions");
//! println!("{}", data.text(best));
//! # assert_eq!(scores.len(), 4 * 20);
//! # Ok::<(), crossweave::Error>(())
//! ```
//! Import an authors' checkpoint, with the configuration and the vocabulary of its BERT, into a folder that opens as a
//! run does:
//! ```
//! use crossweave::data::{import::Source, tokenizer::WordPiece, weights};
//! use crossweave::eval::{import, model::{self, Model}};
//! use crossweave::{systems::kind, tensor::Device};
//!
//! # let folder = tempfile::tempdir().expect("a folder");
//! # let out = folder.path();
//! let source = Source::open("tests/fixtures/ckpt_dime_zip.pth.tar".as_ref())?;
//! let bert: serde_json::Value = model::read_json("tests/fixtures/ckpt_bert_config.json".as_ref())?;
//! let imported = import::system(kind("dime")?, &source, Some(&bert), &[])?;
//! println!("{}", imported.report);
//! weights::write(&out.join("model.safetensors"), &imported.entries, &imported.metadata)?;
//! std::fs::write(out.join("config.json"), imported.config.to_string()).expect("it is written");
//! WordPiece::open("tests/fixtures/ckpt_bert_vocab.txt".as_ref())?.save(out)?;
//! assert_eq!(Model::open(out, None, &Device::Host)?.name, "dime");
//! # Ok::<(), crossweave::Error>(())
//! ```
//!
//! # Tensors
//! Two linear layers learn to find for each image the caption of the same row, on the host twin; with
//! `Device::Gpu(Gpu::open(&Options::default())?)` the same lines run on a GPU.
//! ```
//! use crossweave::ops::{Act, AdamState, AdamStep, adam, sum_of_squares};
//! use crossweave::systems::hinge::hinge;
//! use crossweave::{host::Rng, tensor::{Device, Tape}};
//!
//! let (device, mut rng) = (Device::Host, Rng::new(1));
//! let mut random = |shape: [usize; 2]| {
//!     let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| rng.normal() as f32).collect();
//!     device.tensor(shape, &values)
//! };
//! let (images, captions) = (random([6, 10]), random([6, 7]));
//! let mut weights = [random([4, 10]), random([4, 7])].map(|w| AdamState::new(&w));
//! let step = AdamStep { lr: 0.05, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, clip: 2.0 };
//! let mut losses = Vec::new();
//! for _ in 0..60 {
//!     let tape = Tape::new();
//!     let [w, v] = [0, 1].map(|i| tape.leaf(&weights[i].w));
//!     let image = images.linear(&w, None, Act::None).l2norm(-1, 1e-8);
//!     let caption = captions.linear(&v, None, Act::None).l2norm(-1, 1e-8);
//!     let loss = hinge(&image.matmul(&caption, false, true), 0.2, true);
//!     let grads = tape.backward(&loss);
//!     let grads = [&w, &v].map(|leaf| grads.of(leaf).expect("the loss depends on it"));
//!     let squares = sum_of_squares(&grads);
//!     weights.iter_mut().zip(grads).for_each(|(state, g)| adam(state, g, &squares, &step));
//!     losses.push(loss.item()?);
//! }
//! assert!(losses[0] > 1.0 && losses[59] < 0.1 * losses[0], "{losses:?}");
//! # Ok::<(), crossweave::Error>(())
//! ```
//!
//! # Layers
//! A layer may name those it lists and what they may name; `tests/layers.rs` holds the code to it.
//!
//! | layer | holds | may name |
//! |---|---|---|
//! | [`error`], [`shape`] | the one error; shapes up to rank 5 and broadcasting | nothing |
//! | [`host`] | f64 arrays, named columns of items, comparison, the counter-based generator | error, shape |
//! | [`gpu`] | adapter, memory, kernels, recording, counters: bytes, no tensors | error, shape |
//! | [`tensor`] | tensors, views, the tape, what an op is | gpu, host |
//! | [`ops`] | the ops and the registry of all their cases | tensor |
//! | [`nn`] | parameters by name, linear layers, norms, BERT | ops |
//! | [`systems`] | the trait [`systems::System`], and a folder for each published system | nn |
//! | [`data`] | features, captions, tokens, batches, weights files; no GPU | error, shape, host |
//! | [`eval`] | models in their folders, a split encoded and scored in tiles, ranks, ensembles | systems, data |
//! | [`parity`] | any system against reference fixtures | eval |
//! | [`train`] | options, the loop, checkpoints, metrics | eval |
//! | `cli` | the program: arguments, progress, tables, plots; behind the feature `cli` | parity, train |

#![warn(missing_docs)]

#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod error;
pub mod eval;
pub mod gpu;
pub mod host;
pub mod nn;
pub mod ops;
pub mod parity;
pub mod shape;
pub mod systems;
pub mod tensor;
pub mod train;

pub use error::{Error, Kind, Result};
