// What every kernel may use.

const GROUP = 64u; // invocations of a workgroup; replaced by the style's

// The invocation's number in a dispatch of GROUP invocations a workgroup, folded over two axes.
fn linear_id(id: vec3<u32>, groups: vec3<u32>) -> u32 {
    return id.x + id.y * groups.x * GROUP;
}

// i / n for i below 2^22, by a division of floats: even one that is off by two and a half units is off by one at most.
fn quotient(i: u32, n: u32) -> u32 {
    let q = u32(f32(i) / f32(n));
    let rest = i32(i) - i32(q * n);
    return select(select(q, q + 1u, rest >= i32(n)), q - 1u, rest < 0);
}
