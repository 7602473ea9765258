// One step of gated recurrent units, each direction's: the caption's word `step`, from its end in the second direction.
//: type
alias T = f32;
fn sigmoid(x: T) -> T { return 1.0 / (1.0 + exp(-x)); }
fn safe_tanh(x: T) -> T { return tanh(x); }
//: end
override keep: bool = true; // whether a gradient will be asked
//: use gru_units
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
    let own = unit_of(i, p);
    let word = word_of(own, lens[own.caption], p);
    let gate = 3u * word.place * p.width + own.unit;
    let row = (own.direction * p.captions + own.caption) * 3u * p.width + own.unit;
    let state = ((own.direction * (p.words + 1u) + p.step) * p.captions + own.caption) * p.width + own.unit;
    let before = states[state];
    let reset = sigmoid(gates[gate] + maps[row]);
    let update = sigmoid(gates[gate + p.width] + maps[row + p.width]);
    let mapped = maps[row + 2u * p.width];
    let fresh = safe_tanh(gates[gate + 2u * p.width] + reset * mapped);
    let after = select(T(0.0), fresh + update * (before - fresh), word.inside);
    states[state + p.captions * p.width] = after;
    y[word.place * p.width + own.unit] = after;
    if keep {
        let to = ((own.direction * p.words + p.step) * p.captions + own.caption) * 4u * p.width + own.unit;
        kept[to] = reset;
        kept[to + p.width] = update;
        kept[to + 2u * p.width] = fresh;
        kept[to + 3u * p.width] = mapped;
    }
}
