// What the kernels along columns share: the element, what a team makes of sums together, and what an invocation walks.
// The text between the marks is replaced.
//: lane
alias T = f32; // one channel, or four
const TEAM = 1u; // invocations that walk together
const APART = 1u; // from one of a team to the next: between them are those who walk neighbouring columns
fn join(local: u32) {}
fn fold_sum(x: T) -> T { return x; }
//: end

struct Place {
    own: bool, // false for all of a team but one, and past the last unit: nothing is stored
    unit: u32, // what the team walks
    member: u32,
}

// Invocation `at` of those that walk `count` units.
fn place_of(at: u32, count: u32) -> Place {
    let member = at / APART % TEAM;
    let unit = at / (TEAM * APART) * APART + at % APART;
    return Place(unit < count && member == 0u, min(unit, count - 1u), member);
}
