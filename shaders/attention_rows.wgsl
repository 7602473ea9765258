// What the kernels of multi-head attention share. An invocation owns a row of one side, of one sequence and head, or a
// few that follow each other, and streams over the other side in steps of a few rows, which a subgroup's invocations
// load for each other where there are subgroups. Lists of rows have constant indices, so that they stay in registers.
// Where sequences are windows of a square grid, its rows are in the grid's order: only places are computed. Dropout
// multiplies a weight by 0, or else by 1 / (1 - rate).
//: use generator
struct Params {
    count: u32, // invocations: sequences * heads * padded
    heads: u32,
    own: u32, // rows of the side an invocation owns
    padded: u32, // invocations that own them: whole subgroups
    other: u32, // rows of the other side
    masks: u32, // biases; sequence n reads number n % masks
    keys: u32,
    grid: u32, // rows and columns of the grid
    side: u32, // and of a window
    shift: u32, // rows and columns that the grid is rolled by
    across: u32, // windows side by side
    scale: f32,
    low: u32, // dropout's seed
    high: u32,
    rate: f32,
    kept: f32, // what dropout multiplies by where it does not leave out
}
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [sequences, queries, PARTS * heads * width]
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>; // [sequences, keys, PARTS * heads * width]
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>; // [sequences, keys, PARTS * heads * width]
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [masks, keys] or [masks, heads, queries, keys]; else q

//: variant
@group(0) @binding(8) var<uniform> p: Params;
const LANES = 1u; // invocations that load for each other
const QUADS = 1u; // fours of channels in a head
const CHUNK = 1u; // rows of the other side in a step
const SHARES = 1u; // fours of channels of a step that an invocation loads
const SPAN = 1u; // rows that an invocation owns
const HELD = false; // whether scores are held in registers
const STORED = true; // whether they are stored in workgroup memory
const ROOM = 1u; // rows of the other side that it has room for
const SORTS = 1u; // values of each that are stored
const MASKED = true; // whether keys have a bias
const BIASED = false; // whether queries and keys of each head have one
const WINDOWED = false; // whether sequences are windows
const DROPS = false; // whether weights are dropped out
const PLUS = false; // whether something is added to the result
const PARTS = 1u; // 3 if queries, keys and values are parts of one array
const K = 0u; // the part that keys are
const V = 0u; // and values
const c = 0u; // below CHUNK: what is repeated
const e = 0u; // below CHUNK * QUADS
const h = 0u; // below the steps that are held
const j = 0u; // below QUADS
const o = 0u; // below SPAN
const t = 0u; // below SHARES
//: end

const NOWHERE = -3e38; // a score without weight
alias Head = array<vec4<f32>, QUADS>; // a head's channels in a row
alias Rows = array<Head, CHUNK>;
alias Loaded = array<vec4<f32>, SHARES>;
alias Each = array<f32, CHUNK>; // a value for each row of a step

struct Spot {
    n: u32, // sequence
    head: u32,
    row: u32, // an owned one; past their end the last one
    lane: u32,
    image: u32, // of a window: whose it is, and where in the rolled grid
    top: u32,
    left: u32,
}

// Which row an invocation's number `nth` is; past their end there is none.
fn own_row(i: u32, nth: u32) -> u32 { return i % p.padded * SPAN + nth; }

fn spot(i: u32, lane: u32, nth: u32) -> Spot {
    let n = i / (p.padded * p.heads);
    var s = Spot(n, i / p.padded % p.heads, min(own_row(i, nth), p.own - 1u), lane, 0u, 0u, 0u);
    if WINDOWED {
        s.image = n / (p.across * p.across);
        let down = n / p.across;
        s.top = down % p.across * p.side + p.shift;
        s.left = (n - down * p.across) * p.side + p.shift;
    }
    return s;
}

// The number of a row of this sequence among all rows.
fn row_at(s: Spot, row: u32, rows: u32) -> u32 {
    if !WINDOWED {
        return s.n * rows + row;
    }
    let down = quotient(row, p.side);
    var y = s.top + down;
    var x = s.left + row - down * p.side;
    y -= select(0u, p.grid, y >= p.grid);
    x -= select(0u, p.grid, x >= p.grid);
    return (s.image * p.grid + y) * p.grid + x;
}

// Where the head begins in a row of an array.
fn place(s: Spot, row: u32) -> u32 { return (row * p.heads + s.head) * QUADS; }

// Where it does in the owned row, of a part of so many.
fn own_place(s: Spot, parts: u32, part: u32) -> u32 { return place(s, row_at(s, s.row, p.own) * parts + part); }

// The other side's row that is `after` the step's first; past the end the last one.
fn other_row(first: u32, after: u32) -> u32 { return min(first + after, p.other - 1u); }

// Where the invocation's vector number `share` of a step is.
fn load_place(s: Spot, first: u32, share: u32, parts: u32, part: u32) -> u32 {
    let vector = share * LANES + s.lane;
    let row = row_at(s, other_row(first, vector / QUADS), p.other);
    return place(s, row * parts + part) + vector % QUADS;
}

// A step's rows from what each invocation loaded of them.
fn gathered(own: Loaded) -> Rows {
    var rows: Rows;
//: each e
//: gather
    rows[e / QUADS][e % QUADS] = own[e];
//: end
//: end
    return rows;
}

fn keys(s: Spot, first: u32) -> Rows {
    return gathered(Loaded(
//: each t
        k[load_place(s, first, t, PARTS, K)],
//: end
    ));
}

fn values(s: Spot, first: u32) -> Rows {
    return gathered(Loaded(
//: each t
        v[load_place(s, first, t, PARTS, V)],
//: end
    ));
}

// Where the bias of the sequence's head begins.
fn bias_place(s: Spot) -> u32 { return (s.n % p.masks * p.heads + s.head) * p.own * p.other; }

// What is added to the scores of a step's keys: the bias, and nowhere past the end.
fn biases(s: Spot, first: u32) -> Each {
    var b: Each;
    if MASKED {
        let from_mask = s.n % p.masks * p.keys;
        let own = bias[from_mask + other_row(first, s.lane % CHUNK)];
//: each c
//: spread_masks
        b[c] = own;
//: end
//: end
    }
    if BIASED {
        let from_bias = bias_place(s) + s.row * p.other;
//: each c
        b[c] = bias[from_bias + other_row(first, c)];
//: end
    }
//: each c
    b[c] = select(NOWHERE, b[c], first + c < p.other);
//: end
    return b;
}

// What dropout multiplies a weight by, at its place in [sequences, heads, queries, keys].
fn kept(place: u32) -> f32 {
    if !DROPS {
        return 1.0;
    }
    return select(0.0, p.kept, uniform_at(place, p.low, p.high) >= p.rate);
}

// Values of a step's keys, multiplied as dropout does the query's weights.
fn dropped(s: Spot, first: u32, x: Each) -> Each {
    if !DROPS {
        return x;
    }
    let from_weight = ((s.n * p.heads + s.head) * p.own + s.row) * p.other + first;
    return Each(
//: each c
        x[c] * kept(from_weight + c),
//: end
    );
}

// The dot product, in the order that a matrix product sums.
fn product(x: Head, y: Head) -> f32 {
    var sum = 0.0;
//: each j
    sum = fma(x[j].x, y[j].x, sum);
    sum = fma(x[j].y, y[j].y, sum);
    sum = fma(x[j].z, y[j].z, sum);
    sum = fma(x[j].w, y[j].w, sum);
//: end
    return sum;
}

fn products(x: Head, rows: Rows) -> Each {
    return Each(
//: each c
        product(x, rows[c]),
//: end
    );
}

// sum + factor x.
fn plus_scaled(sum: Head, factor: f32, x: Head) -> Head {
    return Head(
//: each j
        fma(vec4<f32>(factor), x[j], sum[j]),
//: end
    );
}

fn plus_rows(sum: Head, factors: Each, rows: Rows) -> Head {
    var all = sum;
//: each c
    all = plus_scaled(all, factors[c], rows[c]);
//: end
    return all;
}

// Scores of a query and a step's keys.
fn scores(s: Spot, query: Head, rows: Rows, first: u32) -> Each {
    let b = biases(s, first);
    return Each(
//: each c
        product(query, rows[c]) * p.scale + b[c],
//: end
    );
}

fn largest(most: f32, x: Each) -> f32 {
    var top = most;
//: each c
    top = max(top, x[c]);
//: end
    return top;
}

fn total(sum: f32, x: Each) -> f32 {
    var all = sum;
//: each c
    all += x[c];
//: end
    return all;
}

// sum of x y.
fn total_of(sum: f32, x: Each, y: Each) -> f32 {
    var all = sum;
//: each c
    all = fma(x[c], y[c], all);
//: end
    return all;
}

fn exps(x: Each, most: f32) -> Each {
    return Each(
//: each c
        precise_exp(x[c] - most),
//: end
    );
}

fn scaled(x: Each, factor: f32) -> Each {
    return Each(
//: each c
        x[c] * factor,
//: end
    );
}

// An invocation's own places in workgroup memory, which it alone reads.
//: room
var<workgroup> room: array<f32, SORTS * ROOM * SPAN * GROUP>;
fn put(place: u32, x: f32) { room[place] = x; }
fn taken(place: u32) -> f32 { return room[place]; }
//: end

// Stores values of one sort of a step's rows, for the invocation's owned row that begins `at` its place.
fn store(at: u32, sort: u32, first: u32, x: Each) {
//: each c
    put(at + (sort * ROOM + first + c) * SPAN * GROUP, x[c]);
//: end
}

fn stored(at: u32, sort: u32, first: u32) -> Each {
    return Each(
//: each c
        taken(at + (sort * ROOM + first + c) * SPAN * GROUP),
//: end
    );
}
