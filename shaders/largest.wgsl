// y[i] = the largest |x[j]| of the values that workgroup i reads, as bits: a whole number, which orders NaN last.

struct Params {
    count: u32, // values
}
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>; // any shape, f32 by their bits
@group(0) @binding(1) var<storage, read_write> y: array<u32>; // [workgroups]
@group(0) @binding(2) var<uniform> p: Params;

const SIZE = 256u; // invocations of one
var<workgroup> most: array<u32, SIZE>;

@compute @workgroup_size(SIZE)
fn main(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    var own = vec4<u32>(0u);
    for (var i = group.x * SIZE + local; 4u * i < p.count; i += groups.x * SIZE) {
        let place = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u);
        own = max(own, select(vec4<u32>(0u), x[i] & vec4<u32>(0x7fffffffu), place < vec4<u32>(p.count)));
    }
    most[local] = max(max(own.x, own.y), max(own.z, own.w));
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
