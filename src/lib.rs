//! Trains and evaluates image-text matching models on any GPU that wgpu reaches.
//!
//! A [`tensor::Tensor`] is a shape and a buffer, on a GPU in f32 or on the host in f64. Every op is one file: what
//! it dispatches, the plain f64 loops that define it, its gradient written with other ops, and the cases it is
//! tested on. Calling an op records one dispatch at once and, where an input is tracked, one node on a flat
//! [`tensor::Tape`]; `backward` walks the tape from its end and frees what it passes. Pointwise work is a Rust
//! closure over [`ops::Expr`]: shader, reference and derivative all come from that one formula. Model code does
//! not know the side it runs on, so the host in f64 is the twin that every GPU result is held against.
//!
//! # Example
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
