//! Tables of relative position biases, resampled for windows of another size.

/// Keys' cubic kernel at its usual sharpness, in which PyTorch resamples.
const SHARPNESS: f64 = -0.75;

/// A table of `from * from` rows of `heads` values, row by row of a square of offsets, as one of `to * to` rows: bicubic,
/// pixels' centres at halves, the edge repeated beyond it, no smoothing where the square shrinks. In f64 inside; a table
/// that keeps its side keeps its values.
///
/// # Panics
/// A table that is no such square.
pub fn resampled(table: &[f32], from: usize, to: usize, heads: usize) -> Vec<f32> {
    assert_eq!(table.len(), from * from * heads, "a square table of side {from} and {heads} heads");
    if from == to {
        return table.to_vec();
    }
    let places: Vec<_> = (0..to).map(|i| neighbours(i, from, to)).collect();
    let mut out = Vec::with_capacity(to * to * heads);
    for row in &places {
        for column in &places {
            for head in 0..heads {
                let across = |r: usize| -> f64 {
                    column.iter().map(|(c, w)| w * f64::from(table[(r * from + c) * heads + head])).sum()
                };
                out.push(row.iter().map(|(r, w)| w * across(*r)).sum::<f64>() as f32);
            }
        }
    }
    out
}

/// What the `i`-th of `to` places along an axis takes of the `from` that there were.
fn neighbours(i: usize, from: usize, to: usize) -> [(usize, f64); 4] {
    let place = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let before = place.floor();
    std::array::from_fn(|k| {
        let at = before + k as f64 - 1.0;
        (at.clamp(0.0, from as f64 - 1.0) as usize, weight((place - at).abs()))
    })
}

/// The kernel at a distance of at most 2.
fn weight(d: f64) -> f64 {
    let a = SHARPNESS;
    if d <= 1.0 { ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0 } else { (((d - 5.0) * d + 8.0) * d - 4.0) * a }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(side: usize, heads: usize) -> Vec<f32> {
        (0..side * side * heads).map(|i| (i * 37 % 101) as f32 / 8.0).collect()
    }

    #[test]
    fn a_table_that_keeps_its_side_keeps_its_values() {
        let table = ramp(7, 3);
        assert_eq!(resampled(&table, 7, 7, 3), table);
    }

    #[test]
    fn weights_add_up_to_one_wherever_a_place_is() {
        for (from, to) in [(13, 5), (13, 15), (5, 13), (13, 1), (1, 13), (3, 1000)] {
            for i in 0..to {
                let sum: f64 = neighbours(i, from, to).iter().map(|(_, w)| w).sum();
                assert!((sum - 1.0).abs() < 1e-12, "{from} to {to}, {i}: {sum}");
            }
        }
    }

    #[test]
    fn places_that_meet_keep_their_values() {
        let (table, out) = (ramp(5, 2), resampled(&ramp(5, 2), 5, 15, 2));
        for (i, j) in [(0, 0), (2, 4), (4, 1)] {
            let (here, there) = ((i * 5 + j) * 2, ((3 * i + 1) * 15 + 3 * j + 1) * 2);
            assert_eq!(out[there..there + 2], table[here..here + 2]);
        }
    }

    #[test]
    fn heads_do_not_mix() {
        let (one, three) = (ramp(5, 1), ramp(5, 3));
        let mixed: Vec<f32> = one.iter().zip(three.chunks(3)).flat_map(|(x, y)| [y[0], *x, y[2]]).collect();
        let middle: Vec<f32> = resampled(&mixed, 5, 9, 3).chunks(3).map(|row| row[1]).collect();
        assert_eq!(middle, resampled(&one, 5, 9, 1));
    }

    #[test]
    fn a_single_row_fills_any_square() {
        assert_eq!(resampled(&[1.5, -2.0], 1, 3, 2), [1.5, -2.0].repeat(9));
    }
}
