// What every kernel may use.

// The invocation's number in a dispatch of 64 invocations a group, folded over two axes.
fn linear_id(id: vec3<u32>, groups: vec3<u32>) -> u32 {
    return id.x + id.y * groups.x * 64u;
}
