// What every kernel may use.

const GROUP = 64u; // invocations of a workgroup; replaced by the style's

// The invocation's number in a dispatch of GROUP invocations a workgroup, folded over two axes.
fn linear_id(id: vec3<u32>, groups: vec3<u32>) -> u32 {
    return id.x + id.y * groups.x * GROUP;
}
