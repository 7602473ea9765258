//! The code of pointwise kernels: collapsed dimensions, how each input is read, and the WGSL of both.

use std::fmt::Write;
use std::hash::{Hash, Hasher};

use crate::gpu::Buf;
use crate::shape::Shape;
use crate::tensor::{Expr, Program, View};

/// Which elements an invocation handles together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// One.
    Single,
    /// Four neighbours in the output.
    Out,
    /// Four neighbours on the reduced axis.
    Axis,
}

/// One dimension as an input sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    stride: usize,
    bounds: Option<(usize, usize)>,
}

/// How four elements of an input are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Load {
    Single,
    Vector,
    Splat,
    Gather,
}

#[derive(Clone, Debug)]
struct Input {
    binding: usize,
    offset: isize,
    steps: Vec<Step>,
    axis: Step,
    load: Load,
}

/// The plan of one generated kernel.
#[derive(Clone, Debug)]
pub(super) struct Codegen {
    /// Output dimensions after collapsing, outermost first.
    dims: Vec<usize>,
    /// The reduced axis' length, 1 for a map.
    axis: usize,
    pub(super) lane: Lane,
    inputs: Vec<Input>,
    vector_bindings: Vec<bool>,
}

impl Codegen {
    /// A plan over `shape`, whose axis `reduced` (if any) is summed, for inputs read through `views` from
    /// `buffers` (equal buffers share a binding).
    pub(super) fn new(shape: Shape, reduced: Option<usize>, views: &[&View], buffers: &[usize]) -> Self {
        let step = |v: &View, strides: &[usize], k: usize| Step {
            stride: strides[k],
            bounds: v.is_padded(k).then(|| (v.axes[k].low, v.axes[k].high)),
        };
        let read: Vec<(isize, Vec<usize>)> = views.iter().map(|v| v.strides()).collect();
        let mut dims: Vec<usize> = Vec::new();
        let mut inputs: Vec<Input> = read
            .iter()
            .zip(buffers)
            .map(|((offset, _), binding)| Input {
                binding: *binding,
                offset: *offset,
                steps: Vec::new(),
                axis: Step { stride: 0, bounds: None },
                load: Load::Single,
            })
            .collect();
        for k in 0..shape.rank() {
            let n = shape[k];
            let here: Vec<Step> = views.iter().zip(&read).map(|(v, r)| step(v, &r.1, k)).collect();
            if Some(k) == reduced {
                for (input, s) in inputs.iter_mut().zip(&here) {
                    input.axis = *s;
                }
                continue;
            }
            if n == 1 && here.iter().all(|s| s.bounds.is_none()) {
                continue;
            }
            let joins = !dims.is_empty()
                && inputs.iter().zip(&here).all(|(input, s)| {
                    let before = input.steps[input.steps.len() - 1];
                    before.bounds.is_none() && s.bounds.is_none() && before.stride == s.stride * n
                });
            for (input, s) in inputs.iter_mut().zip(&here) {
                if joins {
                    input.steps.pop();
                }
                input.steps.push(*s);
            }
            if joins {
                let last = dims.len() - 1;
                dims[last] *= n;
            } else {
                dims.push(n);
            }
        }
        let axis = reduced.map_or(1, |k| shape[k]);
        let lane = match reduced {
            Some(_) if axis.is_multiple_of(4) && inputs.iter().any(|i| i.axis.stride == 1) => Lane::Axis,
            _ if dims.last().is_some_and(|n| n.is_multiple_of(4)) => Lane::Out,
            _ => Lane::Single,
        };
        let mut codegen = Self { dims, axis, lane, inputs, vector_bindings: Vec::new() };
        codegen.choose_loads();
        codegen
    }

    fn choose_loads(&mut self) {
        let lane = self.lane;
        let aligned = |s: &Step| s.stride.is_multiple_of(4);
        for input in &mut self.inputs {
            let mut others: Vec<Step> = input.steps.clone();
            let along = match lane {
                Lane::Single => continue,
                Lane::Out => {
                    let last = others.pop();
                    others.push(input.axis);
                    last
                }
                Lane::Axis => Some(input.axis),
            };
            let Some(along) = along else { continue };
            let whole = along.bounds.is_none_or(|(a, b)| a.is_multiple_of(4) && b.is_multiple_of(4));
            input.load = if along.stride == 0 && whole {
                Load::Splat
            } else if along.stride == 1
                && whole
                && input.offset.rem_euclid(4) == 0
                && others.iter().all(aligned)
            {
                Load::Vector
            } else {
                Load::Gather
            };
        }
        let bindings = self.inputs.iter().map(|i| i.binding + 1).max().unwrap_or(0);
        self.vector_bindings = (0..bindings)
            .map(|b| self.inputs.iter().all(|i| i.binding != b || i.load == Load::Vector))
            .collect();
    }

    /// Output elements.
    pub(super) fn outputs(&self) -> usize {
        self.dims.iter().product()
    }

    /// Invocations for one chunk of the axis.
    pub(super) fn invocations(&self) -> usize {
        if self.lane == Lane::Out { self.outputs() / 4 } else { self.outputs() }
    }

    /// The axis' length in loop iterations.
    pub(super) fn axis_steps(&self) -> usize {
        if self.lane == Lane::Axis { self.axis / 4 } else { self.axis }
    }

    /// Everything about the plan that the text depends on: structure, never sizes.
    pub(super) fn hash(&self, hash: &mut impl Hasher) {
        (self.lane, self.dims.len(), &self.vector_bindings, self.counts_in_floats()).hash(hash);
        for input in &self.inputs {
            (input.binding, input.load).hash(hash);
            for s in input.steps.iter().chain([&input.axis]) {
                (s.stride.min(2), s.bounds.is_some()).hash(hash);
            }
        }
    }

    /// The bindings' declarations; `vector_out` says whether `y` is stored four at a time.
    pub(super) fn bindings(&self, buffers: usize, vector_out: bool) -> String {
        let mut text = String::new();
        let element = |vector| if vector { "vec4<f32>" } else { "f32" };
        for b in 0..buffers {
            let vector = self.vector_bindings.get(b).copied().unwrap_or(false);
            let _ = writeln!(
                text,
                "@group(0) @binding({b}) var<storage, read> x{b}: array<{}>;",
                element(vector)
            );
        }
        let _ = writeln!(
            text,
            "@group(0) @binding({buffers}) var<storage, read_write> y: array<{}>;",
            element(vector_out)
        );
        let _ = writeln!(text, "@group(0) @binding({}) var<uniform> p: array<vec4<u32>, 64>;", buffers + 1);
        text
    }

    /// Parameters after the first `words`: dims, then each input's offset, strides and bounds.
    pub(super) fn params(&self, words: &mut Vec<u32>) {
        words.extend(self.dims.iter().map(|d| *d as u32));
        for input in &self.inputs {
            words.push(input.offset as i32 as u32);
            for s in input.steps.iter().chain([&input.axis]) {
                words.push(s.stride as u32);
                if let Some((low, high)) = s.bounds {
                    words.extend([low as u32, high as u32]);
                }
            }
        }
    }

    /// Whether every invocation's number is a float: their division is much faster than that of integers, which neither
    /// CPUs nor GPUs do in one step.
    fn counts_in_floats(&self) -> bool {
        self.invocations() < 1 << 22
    }

    /// Statements that split `i` into coordinates `c0, c1, ..` of the output.
    pub(super) fn coordinates(&self, first_param: usize, index: &str) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "    var rest = {index};");
        for k in (0..self.dims.len()).rev() {
            let mut n = param(first_param + k);
            let lanes = self.lane == Lane::Out && k + 1 == self.dims.len();
            if lanes {
                n = format!("({n} / 4u)");
            }
            let times = if lanes { " * 4u" } else { "" };
            if k == 0 {
                let _ = writeln!(text, "    let c0 = rest{times};");
            } else {
                let q = if self.counts_in_floats() {
                    format!("quotient(rest, {n})")
                } else {
                    format!("rest / {n}")
                };
                let _ = writeln!(
                    text,
                    "    let q{k} = {q};\n    let c{k} = (rest - q{k} * {n}){times};\n    rest = q{k};"
                );
            }
        }
        text
    }

    /// Statements that load input `i` as `in{i}` of type `T`; `n` names the axis' coordinate in a reduction.
    pub(super) fn loads(&self, first_param: usize, wanted: impl Fn(usize) -> bool) -> String {
        let mut text = String::new();
        let mut at = first_param + self.dims.len();
        for (i, input) in self.inputs.iter().enumerate() {
            let mut index = param(at);
            at += 1;
            let mut inside = Vec::new();
            let mut lane_stride = "0u".to_string();
            let mut lane_bounds = None;
            for (k, s) in input.steps.iter().chain([&input.axis]).enumerate() {
                let is_axis = k == input.steps.len();
                let c = if is_axis { "n".to_string() } else { format!("c{k}") };
                let stride = param(at);
                at += 1;
                match s.stride {
                    0 => {}
                    1 => index = format!("{index} + {c}"),
                    _ => index = format!("{index} + {c} * {stride}"),
                }
                let is_lane = match self.lane {
                    Lane::Single => false,
                    Lane::Out => k + 1 == input.steps.len(),
                    Lane::Axis => is_axis,
                };
                if is_lane {
                    lane_stride = stride;
                }
                if s.bounds.is_some() {
                    let (low, high) = (param(at), param(at + 1));
                    at += 2;
                    if is_lane && input.load == Load::Gather {
                        lane_bounds = Some((c, low, high));
                    } else {
                        inside.push(format!("{c} >= {low} && {c} < {high}"));
                    }
                }
            }
            if !wanted(i) {
                continue;
            }
            let b = input.binding;
            let vector = self.vector_bindings.get(b).copied().unwrap_or(false);
            let _ = writeln!(text, "    let a{i} = {index};");
            let value = match input.load {
                Load::Single => format!("x{b}[a{i}]"),
                Load::Splat => format!("T(x{b}[a{i}])"),
                Load::Vector if vector => format!("x{b}[a{i} >> 2u]"),
                Load::Vector => format!("T(x{b}[a{i}], x{b}[a{i} + 1u], x{b}[a{i} + 2u], x{b}[a{i} + 3u])"),
                Load::Gather => {
                    let part = |l: usize| {
                        let value = format!("x{b}[a{i} + {l}u * {lane_stride}]");
                        match &lane_bounds {
                            Some((c, low, high)) => {
                                format!("select(0.0, {value}, {c} + {l}u >= {low} && {c} + {l}u < {high})")
                            }
                            None => value,
                        }
                    };
                    format!("T({}, {}, {}, {})", part(0), part(1), part(2), part(3))
                }
            };
            let _ = if inside.is_empty() {
                writeln!(text, "    let in{i} = {value};")
            } else {
                writeln!(text, "    let in{i} = select(T(0.0), {value}, {});", inside.join(" && "))
            };
        }
        text
    }
}

/// Parameter word `i`.
pub(super) fn param(i: usize) -> String {
    format!("p[{}].{}", i / 4, ["x", "y", "z", "w"][i % 4])
}

/// The distinct buffers of a list, and for each entry its place among them.
pub(super) fn distinct<'a>(buffers: &[&'a Buf]) -> (Vec<&'a Buf>, Vec<usize>) {
    let mut unique: Vec<&Buf> = Vec::new();
    let places = buffers
        .iter()
        .map(|b| {
            unique.iter().position(|u| u.same(b)).unwrap_or_else(|| {
                unique.push(b);
                unique.len() - 1
            })
        })
        .collect();
    (unique, places)
}

/// The parts that shaders share, each taken by a line `//: use name`.
const SHARED: &[(&str, &str)] = &[
    ("row", include_str!("../../shaders/row.wgsl")),
    ("columns", include_str!("../../shaders/columns.wgsl")),
    ("moments", include_str!("../../shaders/moments.wgsl")),
    ("generator", include_str!("../../shaders/generator.wgsl")),
    ("attention_rows", include_str!("../../shaders/attention_rows.wgsl")),
    ("layer_norm_params", include_str!("../../shaders/layer_norm_params.wgsl")),
    ("matmul_params", include_str!("../../shaders/matmul_params.wgsl")),
    ("hinge_pairs", include_str!("../../shaders/hinge_pairs.wgsl")),
    ("gru_units", include_str!("../../shaders/gru_units.wgsl")),
    ("cross_attention_scores", include_str!("../../shaders/cross_attention_scores.wgsl")),
    ("cross_attention_steps", include_str!("../../shaders/cross_attention_steps.wgsl")),
];

/// The lines of a template and of the shared parts it uses.
fn lines(template: &str) -> Vec<&str> {
    let shared = |name: &str| SHARED.iter().find(|part| part.0 == name).expect("a shared part").1;
    let used = |line| line_of(line, "use ").map_or_else(|| vec![line], |name| lines(shared(name)));
    template.lines().flat_map(used).collect()
}

/// A template with the shared parts it uses, and the text between `//: name` and `//: end` replaced.
pub(super) fn fill(template: &str, parts: &[(&str, &str)]) -> String {
    let mut lines = lines(template).into_iter();
    let mut text = String::new();
    while let Some(line) = lines.next() {
        let part = line_of(line, "").and_then(|name| parts.iter().find(|p| p.0 == name));
        text.push_str(part.map_or(line, |part| part.1));
        text.push('\n');
        if part.is_some() {
            lines.by_ref().find(|l| *l == "//: end");
        }
    }
    text
}

/// The text with the lines between `//: each name` and `//: end` repeated so often: `name` becomes the number, and so
/// does the end of `x_name`.
pub(super) fn each(text: &str, name: &str, count: usize) -> String {
    let mut all = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line_of(line, "each ") != Some(name) {
            all.push_str(line);
            all.push('\n');
            continue;
        }
        let block: Vec<&str> = lines.by_ref().take_while(|l| *l != "//: end").collect();
        for i in 0..count {
            block.iter().for_each(|line| all.push_str(&numbered(line, name, i)));
        }
    }
    all
}

fn numbered(line: &str, name: &str, i: usize) -> String {
    let other = |c: char| !(c.is_alphanumeric() || c == '_');
    let mut text = String::new();
    for piece in line.split_inclusive(other) {
        let word = piece.trim_end_matches(other);
        match word.strip_suffix(name) {
            Some("") => text += &format!("{i}u"),
            Some(stem) if stem.ends_with('_') => text += &format!("{stem}{i}"),
            _ => text += word,
        }
        text += &piece[word.len()..];
    }
    text + "\n"
}

/// What follows `//: ` and `word` in a line that begins so.
fn line_of<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.strip_prefix("//: ")?.strip_prefix(word)
}

/// A formula of one input as a function of this name, over T.
pub(super) fn function(name: &str, formula: Expr) -> String {
    let program = Program::new(formula);
    let constant = |i: usize| format!("{:?}", program.constants()[i] as f32);
    let (steps, result) = program.wgsl(|_| "x".into(), constant);
    format!("\nfn {name}(x: T) -> T {{\n{steps}    return {result};\n}}\n")
}

/// The functions of formulas, over one number or four.
pub(super) fn pointwise(vector: bool) -> String {
    let alias = if vector {
        "alias T = vec4<f32>;\nalias I = vec4<i32>;\nalias U = vec4<u32>;"
    } else {
        "alias T = f32;\nalias I = i32;\nalias U = u32;"
    };
    fill(include_str!("../../shaders/pointwise.wgsl"), &[("type", alias)])
}
