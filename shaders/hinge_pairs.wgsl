// What the kernels of the hinge loss share: how far a pair violates the margin.
override hardest: bool = true; // whether the largest violation counts alone
override listed: bool = false; // whether the pairs left out are listed; else an item's own
struct Params {
    count: u32,
    n: u32, // images and captions that have an own pair
    images: u32,
    captions: u32,
    margin: f32,
}
@group(0) @binding(0) var<storage, read> sims: array<f32>; // [images, captions]
@group(0) @binding(1) var<storage, read> without: array<f32>; // [n, n]: 1 for pairs left out; sims if not listed
@group(0) @binding(5) var<uniform> p: Params;

fn others(side: u32) -> u32 { return select(p.images, p.captions, side == 0u); }

// Where the pair of a side's item and another is.
fn place(side: u32, own: u32, other: u32) -> u32 {
    return select(other * p.captions + own, own * p.captions + other, side == 0u);
}

// What a violation counts: 0 for a pair that is left out.
fn weight(side: u32, own: u32, other: u32) -> f32 {
    if !listed {
        return select(1.0, 0.0, own == other);
    }
    if other >= p.n {
        return 1.0;
    }
    return 1.0 - without[select(other * p.n + own, own * p.n + other, side == 0u)];
}

fn violation(side: u32, own: u32, other: u32) -> f32 {
    let over = sims[place(side, own, other)] - sims[own * p.captions + own] + p.margin;
    return max(over, 0.0) * weight(side, own, other);
}
