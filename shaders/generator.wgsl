// Value i of the stream of a seed, low and high bits, uniform in [0, 1) with 24 bits: a hash of both, the same as
// host::uniform.
fn uniform_at(i: u32, low: u32, high: u32) -> f32 {
    return f32(scramble(scramble(i ^ low) + high) >> 8u) / 16777216.0;
}

fn scramble(v: u32) -> u32 {
    var h = v;
    h ^= h >> 16u;
    h *= 0x7feb352du;
    h ^= h >> 15u;
    h *= 0x846ca68bu;
    return h ^ (h >> 16u);
}
