// Functions of formulas, over T: one number or four at a time.
//: type
alias T = vec4<f32>;
//: end

// Drivers differ at the ends: some give NaN for a large argument.
fn safe_tanh(x: T) -> T {
    let c = clamp(x, T(-12.0), T(12.0));
    let small = c * (T(1.0) - c * c * (T(0.33333333) - c * c * T(0.13333333)));
    return select(tanh(c), small, abs(c) < T(0.04));
}

fn sigmoid(x: T) -> T {
    let e = exp(-abs(x));
    return select(e, T(1.0), x >= T(0.0)) / (T(1.0) + e);
}

fn softplus(x: T) -> T {
    let e = exp(-abs(x));
    let tail = select(log(T(1.0) + e), e * (T(1.0) - e * T(0.5)), e < T(1e-4));
    return max(x, T(0.0)) + tail;
}

// Two fits of our own (tools/fit_erf.py), both within 1e-7: x plus x times an even polynomial below 1 (the
// sum keeps the rounding of the polynomial small), and
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
    return sign(x) * select(T(1.0) - exp(far), fma(a, near, a), a < T(1.0));
}
