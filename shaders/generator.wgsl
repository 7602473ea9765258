// Values i of the stream of a seed, low and high bits, uniform in [0, 1) with 24 bits: a hash of both, the same as
// host::uniform. T and U are one number or four.
fn uniform_at(i: U, low: u32, high: u32) -> T {
    return T(scramble(scramble(i ^ U(low)) + U(high)) >> U(8u)) / T(16777216.0);
}

fn scramble(v: U) -> U {
    var h = v;
    h ^= h >> U(16u);
    h *= U(0x7feb352du);
    h ^= h >> U(15u);
    h *= U(0x846ca68bu);
    return h ^ (h >> U(16u));
}
