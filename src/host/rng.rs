//! A counter-based generator: value `i` of stream `seed` is a hash of both, the same on the host and in WGSL,
//! so nothing has to be stored to repeat a run.

/// Mixes 32 bits so that each bit of the input changes half of the output's (two multiply-xorshift rounds
/// and a final shift).
pub fn hash_u32(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Value `i` of stream `seed`, uniform in [0, 1) with 24 bits. `shaders/generator.wgsl` computes the same.
pub fn uniform(seed: u64, i: u32) -> f32 {
    let (low, high) = (seed as u32, (seed >> 32) as u32);
    let bits = hash_u32(hash_u32(i ^ low).wrapping_add(high));
    (bits >> 8) as f32 / (1u32 << 24) as f32
}

/// A stream of 64-bit words, for initialisation and sampling on the host: SplitMix64 (Steele, Lea and Flood,
/// 2014), whose state is a counter.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// How far a word moves the state.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The stream of a seed and a path of numbers below it, such as an epoch and a step.
    pub fn of(seed: u64, path: &[u64]) -> Self {
        let mut rng = Self(seed);
        for p in path {
            rng.0 = rng.next_u64() ^ p.wrapping_mul(0xd6e8_feb8_6659_fd93);
        }
        rng
    }

    /// The stream without its next `n` words, which need not be drawn for it.
    pub fn skip(&self, n: u64) -> Self {
        Self(self.0.wrapping_add(n.wrapping_mul(STEP)))
    }

    /// The next 64 bits: a Weyl sequence through a 64-bit finaliser.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Uniform in 0..n; its bias is below `n / 2^64`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_splitmix64() {
        // The generator's published first outputs from state 1234567.
        let words = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        let mut rng = Rng::new(1_234_567);
        assert_eq!([rng.next_u64(), rng.next_u64(), rng.next_u64()], words);
        let start = Rng::new(1_234_567);
        assert_eq!([0, 1, 2].map(|i| start.skip(i).next_u64()), words);
    }

    #[test]
    fn streams_are_flat_and_apart() {
        let n = 20_000u32;
        let mean = (0..n).map(|i| f64::from(uniform(7, i))).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        let same = (0..n).filter(|i| uniform(7, *i) == uniform(8, *i)).count();
        assert!(same < 20, "{same}");
        let mut rng = Rng::of(1, &[2, 3]);
        let normal: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let var = normal.iter().map(|v| v * v).sum::<f64>() / f64::from(n);
        assert!((var - 1.0).abs() < 0.05, "{var}");
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<usize> = (0..100).collect();
        Rng::new(3).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
