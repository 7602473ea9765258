// y[i] = the largest |x[j]| of the values that workgroup i reads, as bits: a whole number, which orders NaN last.

struct Params {
    count: u32, // values
}
@group(0) @binding(0) var<storage, read> x: array<u32>; // any shape, f32 by their bits
@group(0) @binding(1) var<storage, read_write> y: array<u32>; // [PARTS]
@group(0) @binding(2) var<uniform> p: Params;

const PARTS = 256u; // workgroups
const SIZE = 256u; // invocations of one
var<workgroup> most: array<u32, SIZE>;

@compute @workgroup_size(SIZE)
fn main(@builtin(local_invocation_index) local: u32, @builtin(workgroup_id) group: vec3<u32>) {
    var own = 0u;
    for (var i = group.x * SIZE + local; i < p.count; i += PARTS * SIZE) {
        own = max(own, x[i] & 0x7fffffffu);
    }
    most[local] = own;
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        if local < half {
            most[local] = max(most[local], most[local + half]);
        }
        workgroupBarrier();
    }
    if local == 0u {
        y[group.x] = most[0];
    }
}
