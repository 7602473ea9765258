//: use columns

// How much rows weigh, their mean, and the sum of squares about it. No square is taken about anything else: where the mean
// is far from 0, the difference of two large sums would be lost in their rounding.
struct Moments {
    n: T,
    mean: T,
    squares: T,
}
// A divisor in place of the weight of no rows.
const TINY = 1e-30;

// Those of two sets of rows together (Chan, Golub and LeVeque 1983).
fn merged(a: Moments, b: Moments) -> Moments {
    let n = a.n + b.n;
    let apart = b.mean - a.mean;
    let shift = apart * (b.n / max(n, T(TINY)));
    return Moments(n, a.mean + shift, a.squares + b.squares + shift * apart * a.n);
}

// Those of all that a team walked.
fn folded(own: Moments) -> Moments {
    if TEAM == 1u {
        return own;
    }
    let n = fold_sum(own.n);
    let mean = fold_sum(own.n * own.mean) / max(n, T(TINY));
    let apart = own.mean - mean;
    return Moments(n, mean, fold_sum(own.squares + own.n * apart * apart));
}
