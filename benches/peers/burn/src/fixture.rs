//! Whether this form of DIME gives what Crossweave's fixtures hold, forward and backward.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;

use crate::Linear;
use crate::dime::{Batch, Config, Model};

/// The largest distance from a fixture's similarities and loss, relative to their norm.
const BOUND: f64 = 1e-4;
/// That of a gradient: where rounding decides a ReLU near zero otherwise, one moves by some thousandths.
const GRADIENT_BOUND: f64 = 1e-2;

/// A safetensors file: its notes, and shapes and values by name.
struct Fixture {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Fixture {
    fn read(name: &str) -> Result<Self, String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures");
        let file =
            std::fs::read(folder.join(format!("{name}.safetensors"))).map_err(|e| format!("{name}: {e}"))?;
        let broken = || format!("{name} is no fixture");
        let (length, rest) = file.split_first_chunk().ok_or_else(broken)?;
        let (header, data) =
            rest.split_at_checked(u64::from_le_bytes(*length) as usize).ok_or_else(broken)?;
        let header: BTreeMap<String, Value> = serde_json::from_slice(header).map_err(|_| broken())?;
        let spec = header["__metadata__"]["spec"].as_str().ok_or_else(broken)?;
        let spec: Value = serde_json::from_str(spec).map_err(|_| broken())?;
        let mut tensors = BTreeMap::new();
        for (name, about) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let numbers = |of: &Value| -> Vec<usize> {
                of.as_array().into_iter().flatten().map(|v| v.as_u64().unwrap_or(0) as usize).collect()
            };
            let (shape, place) = (numbers(&about["shape"]), numbers(&about["data_offsets"]));
            let words = data.get(place[0]..place[1]).ok_or_else(broken)?.as_chunks::<4>().0.iter();
            let values = match about["dtype"].as_str() {
                Some("F32") => words.map(|b| f32::from_le_bytes(*b)).collect(),
                Some("I32") => words.map(|b| i32::from_le_bytes(*b) as f32).collect(),
                _ => return Err(broken()),
            };
            tensors.insert(name.clone(), (shape, values));
        }
        Ok(Self { config: spec["config"].clone(), tensors })
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    fn data(&self, name: &str) -> TensorData {
        let (shape, values) = &self.tensors[name];
        TensorData::new(values.clone(), shape.clone())
    }

    /// A weight `[to, ..]` as `[from, to]`, with its shape; a norm's is one row.
    fn turned(&self, name: &str) -> ([usize; 2], Vec<f32>) {
        let (shape, values) = &self.tensors[name];
        if shape.len() == 1 {
            return ([1, shape[0]], values.clone());
        }
        let (to, from) = (shape[0], values.len() / shape[0]);
        let at = |i: usize| values[(i % to) * from + i / to];
        ([from, to], (0..values.len()).map(at).collect())
    }

    fn config(&self) -> Config {
        let number = |name: &str| self.config[name].as_f64().expect("a fixture's number");
        Config {
            i2t: self.config["direction"] == "i2t",
            heads: number("num_head_IMRC") as usize,
            lambda: number("lambda_softmax_CMRC"),
            margin: number("margin"),
            trade_off: number("trade_off"),
            batch: number("batch_size"),
        }
    }

    fn model(&self, device: &Device) -> Model {
        let config = self.config();
        let vector = |name: &str, device: &Device| Tensor::<1>::from_data(self.data(name), device);
        let mut maps = BTreeMap::new();
        let mut running = BTreeMap::new();
        for name in self.tensors.keys().filter_map(|name| name.strip_prefix("param.")) {
            if let Some(at) = name.strip_suffix(".weight").filter(|at| !at.starts_with("txt_enc.bert.")) {
                let (shape, values) = self.turned(&format!("param.{name}"));
                let weight = Tensor::from_data(TensorData::new(values, shape), device);
                maps.insert(at.to_string(), Linear(weight, vector(&format!("param.{at}.bias"), device)));
            }
            if let Some(at) = name.strip_suffix(".running_mean") {
                let of = |which| vector(&format!("param.{at}.running_{which}"), &device.clone().inner());
                running.insert(at.to_string(), [of("mean"), of("var")]);
            }
        }
        Model { config, maps, running }.tracked()
    }
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().expect("f32")
}

/// The distance of ours from theirs, relative to the norm of theirs.
fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len(), "values of one tensor");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let mut off = ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b));
    norm(&mut off) / norm(&mut theirs.iter().map(|v| f64::from(*v)))
}

/// Similarities, loss and gradients of both directions; what was found, a line a fixture.
pub fn check(device: &Device) -> Result<String, String> {
    let device = device.clone().autodiff();
    let mut report = String::new();
    for name in ["dime_i2t_extra_stc_train", "dime_t2i_extra_img_train"] {
        let fixture = Fixture::read(name)?;
        let model = fixture.model(&device);
        let lengths = fixture.values("in.lengths").iter().map(|n| *n as usize).collect();
        let batch =
            Batch { images: fixture.data("in.images"), states: fixture.data("out.bert_last"), lengths };
        let (outcome, loss) = model.forward(&batch, &device);
        let grads = loss.backward();
        let sims = distance(&host(outcome.sims), fixture.values("out.sims"));
        let loss = distance(&host(loss), fixture.values("out.loss_total"));
        let mut far = Vec::new();
        // The gradient of the keys' bias is zero but for rounding.
        for (at, Linear(w, b)) in model.maps.iter().filter(|(at, _)| !at.ends_with("linears.1")) {
            let weight = format!("grad.{at}.weight");
            let known = fixture.tensors.contains_key(&weight);
            let (Some(w), Some(b), true) = (w.grad(&grads), b.grad(&grads), known) else { continue };
            far.push((distance(&host(w), &fixture.turned(&weight).1), at));
            far.push((distance(&host(b), fixture.values(&format!("grad.{at}.bias"))), at));
        }
        far.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (worst, at) = far[0];
        let median = far[far.len() / 2].0;
        let line = format!(
            "{name}: sims {sims:.1e}, loss {loss:.1e}, {} gradients, median {median:.1e}, worst {worst:.1e} ({at})\n",
            far.len()
        );
        if far.len() < 80 || sims.max(loss) > BOUND || worst > GRADIENT_BOUND || worst.is_nan() {
            return Err(line);
        }
        report += &line;
    }
    Ok(report)
}
