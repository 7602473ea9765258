// The gradients of one step of gated recurrent units (gru), from those of its result and of the state after it.
//: type
alias T = f32;
//: end
//: use gru_units
@group(0) @binding(0) var<storage, read> kept: array<T>; // [directions, words, captions, 4, width], by step
@group(0) @binding(1) var<storage, read> states: array<T>; // [directions, 1 + words, captions, width], by step
@group(0) @binding(2) var<storage, read> g: array<T>; // [captions, words, directions, width]
@group(0) @binding(3) var<storage, read> lens: array<f32>; // [captions]
@group(0) @binding(4) var<storage, read> through: array<T>; // [directions, captions, width], by the next step's maps
@group(0) @binding(5) var<storage, read_write> gates: array<T>; // [captions, words, directions, 3, width]
@group(0) @binding(6) var<storage, read_write> maps: array<T>; // [directions, words, captions, 3, width], by step
@group(0) @binding(7) var<storage, read_write> past: array<T>; // [directions, captions, width], by the next step itself
@group(0) @binding(8) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let own = unit_of(i, p);
    let word = word_of(own, lens[own.caption], p);
    let at = (own.direction * p.words + p.step) * p.captions + own.caption;
    let first = 4u * at * p.width + own.unit;
    let reset = kept[first];
    let update = kept[first + p.width];
    let fresh = kept[first + 2u * p.width];
    let mapped = kept[first + 3u * p.width];
    let before = states[(at + own.direction * p.captions) * p.width + own.unit];
    var d = T(0.0);
    if word.inside {
        d = g[word.place * p.width + own.unit];
        if p.step + 1u < word.len {
            d += through[i] + past[i];
        }
    }
    let d_update = d * (before - fresh) * update * (1.0 - update);
    let d_fresh = d * (1.0 - update) * (1.0 - fresh * fresh);
    let d_reset = d_fresh * mapped * reset * (1.0 - reset);
    let gate = 3u * word.place * p.width + own.unit;
    gates[gate] = d_reset;
    gates[gate + p.width] = d_update;
    gates[gate + 2u * p.width] = d_fresh;
    let row = 3u * at * p.width + own.unit;
    maps[row] = d_reset;
    maps[row + p.width] = d_update;
    maps[row + 2u * p.width] = d_fresh * reset;
    past[i] = d * update;
}
