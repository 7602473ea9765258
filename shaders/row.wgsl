// What the kernels along rows share: the element, what invocations make of sums and maxima together, and the row an
// invocation owns. The text between the marks is replaced.
//: lane
alias T = f32; // one value, four of a row, or one of four rows
alias U = u32;
fn fold_sum(x: T) -> T { return x; }
fn fold_max(x: T) -> T { return x; }
fn places(n: u32) -> T { return T(n); }
fn first(x: T) -> f32 { return x; }
const TEAM = 1u; // invocations that share a row
fn join(local: u32) {}
fn precise_exp(x: T) -> T { return exp(x); }
//: end

struct Row {
    own: bool, // false past the last row: nothing is stored
    outer: u32,
    start: u32, // its first value
}

// Row i of `count`, of `steps` values that are `inner` apart.
fn row_of(i: u32, count: u32, steps: u32, inner: u32) -> Row {
    let row = min(i, count - 1u);
    let outer = row / inner;
    return Row(i < count, outer, outer * steps * inner + row % inner);
}
