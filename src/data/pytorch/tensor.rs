//! Tensors as a checkpoint describes them: a storage, and which of its elements, in which order.

use super::container::Storages;
use crate::data::archive::shown;
use crate::data::pickle::{Id, Node, Object, Pickle};
use crate::data::weights::Dtype;
use std::borrow::Cow;
use std::ops::Range;

/// What a check reports: a reason to refuse the file.
pub(super) type Check<T> = Result<T, String>;

/// The longest storage key, in bytes.
const MAX_KEY: usize = 512;

/// The most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 32;

/// A tensor: elements of a storage. All of them are in the file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
    storage: Range<usize>,
}

impl Tensor {
    /// The bytes that its elements take, as many as there are even where they share memory.
    pub(super) fn bytes(&self) -> usize {
        self.numel() * size_of_element(self.dtype)
    }

    fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its elements, row-major; borrowed from the file where they are so already.
    pub(super) fn read<'a>(&self, file: &'a [u8]) -> Cow<'a, [u8]> {
        let storage = &file[self.storage.clone()];
        let size = size_of_element(self.dtype);
        if self.numel() == 0 {
            return Cow::Borrowed(&[]);
        }
        if self.is_contiguous() {
            let start = self.offset * size;
            return Cow::Borrowed(&storage[start..start + self.bytes()]);
        }
        let mut values = Vec::with_capacity(self.bytes());
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..self.numel() {
            values.extend_from_slice(&storage[at * size..(at + 1) * size]);
            // Count up, the last axis first, and carry.
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        Cow::Owned(values)
    }

    fn is_contiguous(&self) -> bool {
        let mut next = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == next;
            next *= size;
            fits
        })
    }
}

/// A storage as a pickle's persistent id declares it.
pub(super) struct Declared<'a> {
    pub(super) key: Cow<'a, str>,
    pub(super) elements: usize,
    dtype: Dtype,
}

impl Declared<'_> {
    pub(super) fn bytes(&self) -> usize {
        self.elements * size_of_element(self.dtype)
    }
}

/// Reads a persistent id: `("storage", class, key, device, elements)`, in the legacy format with a sixth part,
/// which is `None` unless the storage is part of another one.
pub(super) fn declared<'a>(pickle: &Pickle<'a>, id: Id) -> Check<Declared<'a>> {
    let parse = || {
        let [tag, class, key, _device, elements, rest @ ..] = pickle.sequence(id)? else { return None };
        let Node::Name(_, class) = *pickle.node(*class) else { return None };
        let &Node::Int(elements) = pickle.node(*elements) else { return None };
        let key = key_text(pickle, *key).filter(|key| key.len() <= MAX_KEY)?;
        let dtype = storage_type(class)?;
        let elements = usize::try_from(elements).ok()?;
        elements.checked_mul(size_of_element(dtype))?;
        let whole = rest.iter().all(|&part| *pickle.node(part) == Node::None);
        (whole && pickle.text(*tag) == Some("storage")).then_some(Declared { key, elements, dtype })
    };
    parse().ok_or_else(|| {
        let parts = pickle.sequence(id).unwrap_or_default();
        let parts: Vec<String> = parts.iter().take(6).map(|&part| pickle.type_name(part)).collect();
        format!("a storage is described in an unknown way: {}", shown(&parts.join(", ")))
    })
}

/// Whether an object is a tensor or a parameter.
pub(super) fn is_tensor(pickle: &Pickle, object: &Object) -> bool {
    makes(pickle, object, "_rebuild_tensor") || makes(pickle, object, "_rebuild_parameter")
}

/// Whether this calls the function of that name, in any of its versions.
fn makes(pickle: &Pickle, object: &Object, function: &str) -> bool {
    let version = match pickle.class(object) {
        Some(("torch._utils", name)) => name.strip_prefix(function),
        _ => None,
    };
    matches!(version, Some("" | "_v2" | "_v3" | "_with_state"))
}

/// Reads the call that makes a tensor. A parameter is a call around that of its tensor.
pub(super) fn tensor(pickle: &Pickle, object: &Object, storages: &Storages) -> Check<Tensor> {
    let args = pickle.sequence(object.args).unwrap_or_default();
    let (_, name) = pickle.class(object).unwrap_or_default();
    match (name, args) {
        ("_rebuild_parameter" | "_rebuild_parameter_with_state", &[data, ..]) => match pickle.node(data) {
            // One level only: a parameter in a parameter is nothing that PyTorch writes.
            Node::Object(inner) if makes(pickle, inner, "_rebuild_tensor") => tensor(pickle, inner, storages),
            _ => Err("it is a parameter without a tensor".to_string()),
        },
        ("_rebuild_tensor_v3", &[storage, offset, shape, strides, _, _, dtype, ..]) => {
            let dtype = match *pickle.node(dtype) {
                Node::Name("torch", name) => named_type(name),
                _ => None,
            };
            let dtype = dtype.ok_or_else(|| "its element type is not supported".to_string())?;
            view(pickle, storage, Some(dtype), [offset, shape, strides], storages)
        }
        ("_rebuild_tensor" | "_rebuild_tensor_v2", &[storage, offset, shape, strides, ..]) => {
            view(pickle, storage, None, [offset, shape, strides], storages)
        }
        _ => Err("it is made with too few arguments".to_string()),
    }
}

/// The elements of a storage that a tensor is, once they are known to be in it.
fn view(
    pickle: &Pickle,
    storage: Id,
    dtype: Option<Dtype>,
    [offset, shape, strides]: [Id; 3],
    storages: &Storages,
) -> Check<Tensor> {
    let &Node::Persistent(id) = pickle.node(storage) else {
        return Err("it has no storage".to_string());
    };
    let declared = declared(pickle, id)?;
    let key = shown(&declared.key);
    let Some(storage) = storages.get(&declared.key) else {
        return Err(format!("storage `{key}` is used, but the file does not hold it"));
    };
    let (held, said) = (storage.len(), declared.bytes());
    if held != said {
        return Err(format!("storage `{key}` has another size than said: {held} bytes, not {said}"));
    }
    let [shape, strides] = [numbers(pickle, shape)?, numbers(pickle, strides)?];
    let offset = number(pickle, offset)?;
    if shape.len() != strides.len() {
        return Err(format!("its rank is unclear: {} sizes, {} strides", shape.len(), strides.len()));
    }
    let dtype = dtype.unwrap_or(declared.dtype);
    let held = storage.len() / size_of_element(dtype);
    let needed = needed(dtype, &shape, &strides, offset)
        .ok_or_else(|| "its sizes overflow the memory of any machine".to_string())?;
    if needed > held {
        return Err(format!("it needs {needed} elements of storage `{key}`, which has {held}"));
    }
    // An axis of one element is not stepped along: its stride may be any number.
    let strides =
        shape.iter().zip(strides).map(|(&size, stride)| if size == 1 { 0 } else { stride }).collect();
    Ok(Tensor { dtype, shape, strides, offset, storage: storage.clone() })
}

/// How many elements a storage must have; `None` if a number is too large.
fn needed(dtype: Dtype, shape: &[usize], strides: &[usize], offset: usize) -> Option<usize> {
    // With a size of 0 left out, so that every partial product is bounded.
    let all = shape.iter().filter(|&&size| size > 0).try_fold(1_usize, |n, &size| n.checked_mul(size))?;
    all.checked_mul(size_of_element(dtype)).filter(|&bytes| isize::try_from(bytes).is_ok())?;
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = offset;
    for (&size, &stride) in shape.iter().zip(strides) {
        last = last.checked_add(stride.checked_mul(size - 1)?)?;
    }
    last.checked_add(1)
}

fn numbers(pickle: &Pickle, id: Id) -> Check<Vec<usize>> {
    let ids = pickle.sequence(id).ok_or_else(|| "its sizes or strides are no tuple".to_string())?;
    if ids.len() > MAX_DIMENSIONS {
        return Err(format!("it has more than {MAX_DIMENSIONS} dimensions"));
    }
    ids.iter().map(|&id| number(pickle, id)).collect()
}

fn number(pickle: &Pickle, id: Id) -> Check<usize> {
    let number = match *pickle.node(id) {
        Node::Int(number) => usize::try_from(number).ok(),
        _ => None,
    };
    number.ok_or_else(|| "its offset, sizes and strides must be non-negative numbers".to_string())
}

/// Text, or a number as text: what keys are.
pub(super) fn key_text<'a>(pickle: &Pickle<'a>, id: Id) -> Option<Cow<'a, str>> {
    match pickle.node(id) {
        Node::Text(text) => Some(text.clone()),
        Node::Int(number) => Some(number.to_string().into()),
        _ => None,
    }
}

fn size_of_element(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// The element type of a storage class of module `torch`.
fn storage_type(class: &str) -> Option<Dtype> {
    Some(match class {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" | "UntypedStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

/// The element type of this name in module `torch`, as an untyped storage's tensor gives it.
fn named_type(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" => Dtype::F64,
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::BOOL,
        _ => return None,
    })
}
