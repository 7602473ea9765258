// One step of gated recurrent units, each direction's: the caption's word `step`, from its end in the second direction.
//: type
alias T = f32;
fn sigmoid(x: T) -> T { return 1.0 / (1.0 + exp(-x)); }
fn safe_tanh(x: T) -> T { return tanh(x); }
//: end
override keep: bool = true; // whether a gradient will be asked
struct Params {
    count: u32, // directions * captions * width
    width: u32, // of a state, in T
    captions: u32,
    words: u32,
    directions: u32,
    step: u32,
}
@group(0) @binding(0) var<storage, read> gates: array<T>; // [captions, words, directions, 3, width]
@group(0) @binding(1) var<storage, read> maps: array<T>; // [directions, captions, 3, width], of the state before
@group(0) @binding(2) var<storage, read> lens: array<f32>; // [captions]
@group(0) @binding(3) var<storage, read_write> states: array<T>; // [directions, 1 + words, captions, width], by step
@group(0) @binding(4) var<storage, read_write> kept: array<T>; // [directions, words, captions, 4, width], by step
@group(0) @binding(5) var<storage, read_write> y: array<T>; // [captions, words, directions, width]
@group(0) @binding(6) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let unit = i % p.width;
    let caption = i / p.width % p.captions;
    let direction = i / p.width / p.captions;
    let len = min(u32(lens[caption]), p.words);
    let inside = p.step < len;
    let word = select(p.step, len - 1u - p.step, inside && direction == 1u);
    let place = (caption * p.words + word) * p.directions + direction;
    let gate = 3u * place * p.width + unit;
    let row = (direction * p.captions + caption) * 3u * p.width + unit;
    let state = ((direction * (p.words + 1u) + p.step) * p.captions + caption) * p.width + unit;
    let before = states[state];
    let reset = sigmoid(gates[gate] + maps[row]);
    let update = sigmoid(gates[gate + p.width] + maps[row + p.width]);
    let mapped = maps[row + 2u * p.width];
    let fresh = safe_tanh(gates[gate + 2u * p.width] + reset * mapped);
    let after = select(T(0.0), fresh + update * (before - fresh), inside);
    states[state + p.captions * p.width] = after;
    y[place * p.width + unit] = after;
    if keep {
        let to = ((direction * p.words + p.step) * p.captions + caption) * 4u * p.width + unit;
        kept[to] = reset;
        kept[to + p.width] = update;
        kept[to + 2u * p.width] = fresh;
        kept[to + 3u * p.width] = mapped;
    }
}
