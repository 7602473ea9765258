//! Slabs: parameters of one optimiser group and role in one piece of memory, each where the device can bind it.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::params::{ParamSpec, Role};
use crate::error::Result;
use crate::ops::{places, unpack};
use crate::shape::Shape;
use crate::tensor::{Device, Tensor};

/// Values of a slab, where no larger parameter or set has one of its own: large enough that a few dispatches step a
/// model, small enough that no more than this is copied at once.
const TARGET: usize = 1 << 22;

/// A parameter's values before they are on the device.
#[derive(Clone, Debug)]
pub enum ParamValues<'a> {
    /// In memory.
    Values(Vec<f32>),
    /// The little-endian bytes of a mapped file.
    Bytes(&'a [u8]),
}

impl ParamValues<'_> {
    fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytes),
            Self::Values(values) if cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(values))
            }
            Self::Values(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// Where [`Slab::upload`] takes a member's values from.
pub type Source<'s, 'a> = &'s mut dyn FnMut(&ParamSpec) -> Result<ParamValues<'a>>;

/// One parameter of a slab.
#[derive(Clone, Debug)]
pub struct Member {
    /// The parameter.
    pub spec: ParamSpec,
    /// Its first value in the slab.
    pub start: usize,
}

/// Parameters of one group and role, contiguous but for zeros up to the device's alignment. On the host every parameter
/// is a slab of its own.
#[derive(Clone, Debug)]
pub struct Slab {
    /// The optimiser group.
    pub group: &'static str,
    /// The members' role; counters are with the statistics.
    pub role: Role,
    /// The parameters in memory order.
    pub members: Vec<Member>,
    /// Their values, flat.
    pub values: Tensor,
}

impl Slab {
    /// Slabs of all parameters, in the order of `specs` within a group and role.
    pub(super) fn all(specs: &[ParamSpec], device: &Device, values: Source) -> Result<Vec<Self>> {
        plan(specs, device).into_iter().map(|specs| Self::new(specs, device, values)).collect()
    }

    fn new(specs: Vec<ParamSpec>, device: &Device, values: Source) -> Result<Self> {
        let (starts, _) = places(device, specs.iter().map(|s| s.shape.len()));
        let (group, role) = (specs[0].group, specs[0].role.in_memory());
        let member = |(spec, start)| Member { spec, start };
        let members: Vec<Member> = specs.into_iter().zip(starts).map(member).collect();
        let values = upload(&members, device, values)?;
        Ok(Self { group, role, members, values })
    }

    /// A tensor laid out like this slab, with other values.
    ///
    /// # Errors
    /// Those of `values`.
    pub fn upload(&self, values: Source) -> Result<Tensor> {
        upload(&self.members, &self.values.device(), values)
    }

    /// Each member's tensor; on a GPU it aliases the slab.
    pub fn views(&self) -> Vec<Tensor> {
        unpack(&self.values, &self.members.iter().map(|m| m.spec.shape).collect::<Vec<Shape>>())
    }

    /// Each member's part of the values of a tensor laid out like this slab.
    pub fn parts<'s, 'v>(&'s self, all: &'v [f32]) -> impl Iterator<Item = (&'s ParamSpec, &'v [f32])> {
        self.members.iter().map(|m| (&m.spec, &all[m.start..m.start + m.spec.shape.len()]))
    }
}

/// The members' values at their places in one tensor, copied once: into memory that the device reads.
fn upload(members: &[Member], device: &Device, values: Source) -> Result<Tensor> {
    let held: Vec<ParamValues> = members.iter().map(|m| values(&m.spec)).collect::<Result<_>>()?;
    let (_, len) = places(device, members.iter().map(|m| m.spec.shape.len()));
    let ends = members.iter().skip(1).map(|m| m.start).chain([len]);
    let gaps: Vec<usize> =
        members.iter().zip(ends).map(|(m, end)| 4 * (end - m.start - m.spec.shape.len())).collect();
    let zeros = vec![0; gaps.iter().copied().max().unwrap_or(0)];
    let bytes: Vec<Cow<[u8]>> = held.iter().map(ParamValues::bytes).collect();
    let mut parts: Vec<&[u8]> = Vec::new();
    for ((member, bytes), gap) in members.iter().zip(&bytes).zip(gaps) {
        let Member { spec, .. } = member;
        assert_eq!(bytes.len(), 4 * spec.shape.len(), "bytes of {} {}", spec.name, spec.shape);
        parts.extend([&**bytes, &zeros[..gap]]);
    }
    Ok(device.tensor_of_bytes([len], &parts))
}

/// Which parameters share a slab. Those that one product takes are never split.
fn plan(specs: &[ParamSpec], device: &Device) -> Vec<Vec<ParamSpec>> {
    let Some(gpu) = device.gpu() else { return specs.iter().map(|s| vec![s.clone()]).collect() };
    let most = TARGET.min(gpu.facts().max_binding as usize / 4);
    let mut slabs: Vec<Vec<ParamSpec>> = Vec::new();
    // The slab of each kind that is still filled, and the values in it.
    let mut open: HashMap<(&str, Role), (usize, usize)> = HashMap::new();
    let mut sets: HashSet<&String> = HashSet::new();
    for unit in specs.chunk_by(|a, b| a.together.is_some() && a.together == b.together) {
        let kind = |s: &ParamSpec| (s.group, s.role.in_memory());
        let [first, ..] = unit else { continue };
        assert!(unit.iter().all(|s| kind(s) == kind(first)), "a set of two groups or roles: {first:?}");
        assert!(first.together.as_ref().is_none_or(|set| sets.insert(set)), "a set in two places: {first:?}");
        let (_, len) = places(device, unit.iter().map(|s| s.shape.len()));
        let slab = open.entry(kind(first)).or_insert((usize::MAX, most));
        if slab.1 + len > most {
            *slab = (slabs.len(), 0);
            slabs.push(Vec::new());
        }
        slabs[slab.0].extend_from_slice(unit);
        slab.1 += len;
    }
    slabs
}
