// y = formula(x0, x1, ..), element by element or four at a time. The text between the marks is replaced: by
// the inputs' bindings, by how each is read (views are strides), and by the formula.
//: bindings
@group(0) @binding(0) var<storage, read> x0: array<vec4<f32>>; // any shape, read through its view
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // the view's shape
@group(0) @binding(2) var<uniform> p: array<vec4<u32>, 64>; // count, dims, strides, bounds, constants
//: end

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p[0].x {
        return;
    }
//: body
    y[i] = erf(x0[i]);
//: end
}
