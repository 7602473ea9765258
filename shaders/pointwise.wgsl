// Functions of formulas, over T: one number or four at a time. Drivers differ in accuracy and at the ends, so
// the polynomials are our own (tools/fit.py).
//: type
alias T = vec4<f32>;
alias I = vec4<i32>;
alias U = vec4<u32>;
//: end

// e^x within 2e-7: x = k ln 2 + r, with ln 2 in two parts so that r is exact.
fn precise_exp(x: T) -> T {
    let c = clamp(x, T(-87.0), T(88.7));
    let k = round(c * T(1.442695));
    let r = (c - k * T(0.693359375)) + k * T(2.1219444e-4);
    var y = T(0.00139497693);
    y = fma(y, r, T(0.00837596122));
    y = fma(y, r, T(0.0416662003));
    y = fma(y, r, T(0.166664054));
    y = fma(y, r, T(0.500000011));
    y = fma(y, r, T(1.0));
    y = fma(y, r, T(1.0));
    // Past the ends: 0, and an overflow that every driver rounds to infinity.
    let ends = select(T(0.0), T(3e38) * max(x, T(0.0)), x > T(88.7));
    return select(ldexp(y, I(k)), ends, abs(x - c) > T(0.0));
}

// tanh by an odd polynomial where it is small, else by exp; never NaN for a large argument.
fn safe_tanh(x: T) -> T {
    let c = clamp(abs(x), T(0.0), T(12.0));
    let s = c * c;
    var y = T(0.00210526213);
    y = fma(y, s, T(-0.00813400327));
    y = fma(y, s, T(0.0216817469));
    y = fma(y, s, T(-0.0539428569));
    y = fma(y, s, T(0.133331678));
    y = fma(y, s, T(-0.333333293));
    y = fma(y, s, T(1.0));
    return sign(x) * select(T(1.0) - T(2.0) / (precise_exp(c + c) + T(1.0)), c * y, c < T(0.62));
}

fn is_finite(x: T) -> T {
    return select(T(0.0), T(1.0), (bitcast<U>(x) & U(0x7f800000u)) != U(0x7f800000u));
}

fn sigmoid(x: T) -> T {
    let e = precise_exp(-abs(x));
    return select(e, T(1.0), x >= T(0.0)) / (T(1.0) + e);
}

fn softplus(x: T) -> T {
    let e = precise_exp(-abs(x));
    let tail = select(log(T(1.0) + e), e * (T(1.0) - e * T(0.5)), e < T(1e-4));
    return max(x, T(0.0)) + tail;
}

// Within 1e-7: x plus x times an even polynomial below 1, where the sum hides the polynomial's rounding, and
// 1 - exp(polynomial) from there to 4, past which f32 rounds to 1.
fn erf(x: T) -> T {
    let a = min(abs(x), T(4.0));
    let s = a * a;
    var near = T(-9.67359024e-06);
    near = fma(near, s, T(0.000112682537));
    near = fma(near, s, T(-0.000848439653));
    near = fma(near, s, T(0.00522105341));
    near = fma(near, s, T(-0.0268654383));
    near = fma(near, s, T(0.112837826));
    near = fma(near, s, T(-0.376126385));
    near = fma(near, s, T(0.128379167));
    var far = T(1.61406163e-06);
    far = fma(far, a, T(-4.55906231e-05));
    far = fma(far, a, T(0.000592769544));
    far = fma(far, a, T(-0.00474022237));
    far = fma(far, a, T(0.0263647175));
    far = fma(far, a, T(-0.109978245));
    far = fma(far, a, T(-0.631937093));
    far = fma(far, a, T(-1.13016668));
    far = fma(far, a, T(0.000303213001));
    return sign(x) * select(T(1.0) - precise_exp(far), fma(a, near, a), a < T(1.0));
}

// The angle of the point (x, y), 0 at the origin: the arc tangent of the smaller coordinate over the larger, by an odd
// polynomial, and which eighth of the circle it is in.
fn angle(y: T, x: T) -> T {
    let a = abs(y);
    let b = abs(x);
    let t = min(a, b) / max(max(a, b), T(1.2e-38));
    let s = t * t;
    var r = T(-0.00174370115);
    r = fma(r, s, T(0.0106807195));
    r = fma(r, s, T(-0.030717509));
    r = fma(r, s, T(0.0574635579));
    r = fma(r, s, T(-0.0837206395));
    r = fma(r, s, T(0.10940199));
    r = fma(r, s, T(-0.142615737));
    r = fma(r, s, T(0.199982306));
    r = fma(r, s, T(-0.333332823));
    r = t * fma(r, s, T(0.999999998));
    r = select(r, T(1.57079633) - r, a > b);
    r = select(r, T(3.14159265) - r, x < T(0.0));
    return select(r, -r, y < T(0.0));
}
