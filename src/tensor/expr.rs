//! The pointwise language: a formula is a Rust closure over [`Expr`]; the shader, the f64 reference and the
//! gradient are derived from it.

use std::ops;
use std::rc::Rc;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// `-x`
    Neg,
    /// `e^x`
    Exp,
    /// `ln x`
    Log,
    /// Square root.
    Sqrt,
    /// `1 / sqrt(x)`
    Rsqrt,
    /// `|x|`
    Abs,
    /// -1, 0 or 1.
    Sign,
    /// Hyperbolic tangent, safe at any size.
    Tanh,
    /// `1 / (1 + e^-x)`, safe at any size.
    Sigmoid,
    /// `ln(1 + e^x)`, safe at any size.
    Softplus,
    /// The error function.
    Erf,
    /// 1 unless NaN or infinite, by its bits: drivers may assume that neither occurs.
    IsFinite,
}

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// The larger.
    Max,
    /// The smaller.
    Min,
    /// 1 where `a > b`, else 0.
    Greater,
    /// The angle of the point whose ordinate is `a` and abscissa `b`; 0 at the origin.
    Atan2,
}

#[derive(Debug)]
pub(super) enum Node {
    Input(usize),
    Const(f64),
    Unary(Unary, Expr),
    Binary(Binary, Expr, Expr),
    /// The second where the first is not 0, else the third.
    Select(Expr, Expr, Expr),
}

/// A formula over the inputs of a map. Cheap to clone; shared parts are computed once.
#[derive(Clone, Debug)]
pub struct Expr(Rc<Made>);

#[derive(Debug)]
struct Made {
    node: Node,
    /// Bit `i` is set if input `i` is read.
    reads: u64,
    /// Operations, shared ones counted wherever they are read.
    size: u32,
}

/// Inputs whose bit fits [`Made::reads`].
const MOST_INPUTS: usize = 64;

impl From<Node> for Expr {
    fn from(node: Node) -> Self {
        let parts = match &node {
            Node::Input(_) | Node::Const(_) => [None; 3],
            Node::Unary(_, x) => [Some(x), None, None],
            Node::Binary(_, a, b) => [Some(a), Some(b), None],
            Node::Select(c, a, b) => [Some(c), Some(a), Some(b)],
        };
        let own = if let Node::Input(i) = node { 1 << i } else { 0 };
        let parts = parts.into_iter().flatten();
        let reads = parts.clone().fold(own, |all, part| all | part.0.reads);
        let size = parts.fold(1, |all: u32, part| all.saturating_add(part.0.size));
        Self(Rc::new(Made { node, reads, size }))
    }
}

impl From<f64> for Expr {
    fn from(value: f64) -> Self {
        Node::Const(value).into()
    }
}

impl From<&Expr> for Expr {
    fn from(e: &Expr) -> Self {
        e.clone()
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:ident),*) => {$(
        impl<T: Into<Expr>> ops::$trait<T> for Expr {
            type Output = Expr;
            fn $method(self, other: T) -> Expr {
                binary(Binary::$op, self, other.into())
            }
        }
        impl<T: Into<Expr>> ops::$trait<T> for &Expr {
            type Output = Expr;
            fn $method(self, other: T) -> Expr {
                binary(Binary::$op, self.clone(), other.into())
            }
        }
        impl ops::$trait<Expr> for f64 {
            type Output = Expr;
            fn $method(self, other: Expr) -> Expr {
                binary(Binary::$op, self.into(), other)
            }
        }
    )*};
}
operators!(Add add Add, Sub sub Sub, Mul mul Mul, Div div Div);

impl ops::Neg for Expr {
    type Output = Self;
    fn neg(self) -> Self {
        unary(Unary::Neg, self)
    }
}

fn unary(op: Unary, x: Expr) -> Expr {
    match x.constant() {
        Some(v) => op.value(v).into(),
        None => Node::Unary(op, x).into(),
    }
}

fn binary(op: Binary, a: Expr, b: Expr) -> Expr {
    use Binary::{Add, Div, Mul, Sub};
    match (op, a.constant(), b.constant()) {
        (_, Some(x), Some(y)) => op.value(x, y).into(),
        (Add, Some(0.0), _) | (Mul, Some(1.0), _) => b,
        (Add | Sub, _, Some(0.0)) | (Mul | Div, _, Some(1.0)) => a,
        (Mul, Some(0.0), _) | (Mul, _, Some(0.0)) => 0.0.into(),
        (Sub, Some(0.0), _) => -b,
        _ => Node::Binary(op, a, b).into(),
    }
}

impl Expr {
    /// Input `i` of the map.
    pub fn input(i: usize) -> Self {
        assert!(i < MOST_INPUTS, "input {i} of a formula");
        Node::Input(i).into()
    }

    /// What it is made of.
    pub(super) fn node(&self) -> &Node {
        &self.0.node
    }

    /// Tells it from other formulas, as long as both exist.
    pub(super) fn place(&self) -> *const () {
        Rc::as_ptr(&self.0).cast()
    }

    /// Its operations, inputs and constants, shared ones counted wherever they are read.
    pub(crate) fn size(&self) -> u32 {
        self.0.size
    }

    /// Whether it reads input `i`.
    pub fn reads(&self, i: usize) -> bool {
        i < MOST_INPUTS && self.0.reads >> i & 1 == 1
    }

    /// Its value, where it reads no input.
    pub(crate) fn constant(&self) -> Option<f64> {
        match *self.node() {
            Node::Const(v) => Some(v),
            _ => None,
        }
    }

    /// `e^x`
    pub fn exp(&self) -> Self {
        unary(Unary::Exp, self.clone())
    }

    /// `ln x`
    pub fn log(&self) -> Self {
        unary(Unary::Log, self.clone())
    }

    /// Square root.
    pub fn sqrt(&self) -> Self {
        unary(Unary::Sqrt, self.clone())
    }

    /// `1 / sqrt(x)`
    pub fn rsqrt(&self) -> Self {
        unary(Unary::Rsqrt, self.clone())
    }

    /// `|x|`; its gradient at 0 is 0.
    pub fn abs(&self) -> Self {
        unary(Unary::Abs, self.clone())
    }

    /// -1, 0 or 1; its gradient is 0.
    pub fn sign(&self) -> Self {
        unary(Unary::Sign, self.clone())
    }

    /// Hyperbolic tangent.
    pub fn tanh(&self) -> Self {
        unary(Unary::Tanh, self.clone())
    }

    /// `1 / (1 + e^-x)`
    pub fn sigmoid(&self) -> Self {
        unary(Unary::Sigmoid, self.clone())
    }

    /// `ln(1 + e^x)`
    pub fn softplus(&self) -> Self {
        unary(Unary::Softplus, self.clone())
    }

    /// The error function.
    pub fn erf(&self) -> Self {
        unary(Unary::Erf, self.clone())
    }

    /// 1 unless NaN or infinite; its gradient is 0.
    pub fn is_finite(&self) -> Self {
        unary(Unary::IsFinite, self.clone())
    }

    /// The larger; where equal the gradient goes to the other.
    pub fn max(&self, other: impl Into<Self>) -> Self {
        binary(Binary::Max, self.clone(), other.into())
    }

    /// The smaller; where equal the gradient goes to the other.
    pub fn min(&self, other: impl Into<Self>) -> Self {
        binary(Binary::Min, self.clone(), other.into())
    }

    /// 1 where it is greater, else 0; its gradient is 0.
    pub fn greater(&self, other: impl Into<Self>) -> Self {
        binary(Binary::Greater, self.clone(), other.into())
    }

    /// The angle, in radians, of the point whose ordinate this is, and `x` its abscissa; 0 at the origin.
    pub fn atan2(&self, x: impl Into<Self>) -> Self {
        binary(Binary::Atan2, self.clone(), x.into())
    }

    /// `yes` where this is not 0, else `no`.
    pub fn select(&self, yes: impl Into<Self>, no: impl Into<Self>) -> Self {
        Node::Select(self.clone(), yes.into(), no.into()).into()
    }

    /// `max(x, 0)`; its gradient at 0 is 0, as PyTorch's.
    pub fn relu(&self) -> Self {
        self.max(0.0)
    }

    /// `x` where positive, else `slope * x`.
    pub fn leaky_relu(&self, slope: f64) -> Self {
        self.greater(0.0).select(self, self * slope)
    }

    /// `x/2 (1 + erf(x / sqrt 2))`: the exact form, no tanh fit.
    pub fn gelu(&self) -> Self {
        self * 0.5 * ((self * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0)
    }

    /// Whether it is an input, unchanged.
    pub(crate) fn is_input(&self) -> bool {
        matches!(self.node(), Node::Input(_))
    }

    /// The same formula over other inputs: input `i` becomes input `to[i]`.
    pub(crate) fn renumbered(&self, to: &[usize]) -> Self {
        renumbered(self, to, &mut Seen::new())
    }

    /// The derivative with respect to input `i`.
    pub fn derivative(&self, i: usize) -> Self {
        derivative(self, i, &mut Seen::new())
    }
}

/// What was made of parts already met: few, so that a walk over them is faster than a hash.
type Seen = Vec<(*const (), Expr)>;

fn met(seen: &Seen, e: &Expr) -> Option<Expr> {
    seen.iter().rev().find(|(place, _)| *place == e.place()).map(|(_, made)| made.clone())
}

fn derivative(e: &Expr, i: usize, seen: &mut Seen) -> Expr {
    if !e.reads(i) {
        return 0.0.into();
    }
    if let Some(d) = met(seen, e) {
        return d;
    }
    let d = match e.node() {
        Node::Input(_) => 1.0.into(),
        Node::Const(_) => 0.0.into(),
        Node::Unary(op, x) => op.slope(x, e) * derivative(x, i, seen),
        Node::Binary(op, a, b) => {
            let (da, db) = (derivative(a, i, seen), derivative(b, i, seen));
            match op {
                Binary::Add => da + db,
                Binary::Sub => da - db,
                Binary::Mul => da * b + a * db,
                Binary::Div => da / b - e * (db / b),
                Binary::Max => pick(&a.greater(b), da, db),
                Binary::Min => pick(&b.greater(a), da, db),
                Binary::Greater => 0.0.into(),
                Binary::Atan2 => (da * b - db * a) / (a * a + b * b).max(f64::from(f32::MIN_POSITIVE)),
            }
        }
        Node::Select(c, a, b) => pick(c, derivative(a, i, seen), derivative(b, i, seen)),
    };
    seen.push((e.place(), d.clone()));
    d
}

fn renumbered(e: &Expr, to: &[usize], seen: &mut Seen) -> Expr {
    if let Some(done) = met(seen, e) {
        return done;
    }
    let mut part = |e: &Expr| renumbered(e, to, seen);
    let done = match e.node() {
        Node::Input(i) => Expr::input(to[*i]),
        Node::Const(v) => (*v).into(),
        Node::Unary(op, x) => Node::Unary(*op, part(x)).into(),
        Node::Binary(op, a, b) => Node::Binary(*op, part(a), part(b)).into(),
        Node::Select(c, a, b) => Node::Select(part(c), part(a), part(b)).into(),
    };
    seen.push((e.place(), done.clone()));
    done
}

fn pick(condition: &Expr, yes: Expr, no: Expr) -> Expr {
    if yes.constant() == Some(0.0) && no.constant() == Some(0.0) {
        return yes;
    }
    condition.select(yes, no)
}

impl Unary {
    pub(super) fn value(self, x: f64) -> f64 {
        match self {
            Self::Neg => -x,
            Self::Exp => x.exp(),
            Self::Log => x.ln(),
            Self::Sqrt => x.sqrt(),
            Self::Rsqrt => 1.0 / x.sqrt(),
            Self::Abs => x.abs(),
            Self::Sign if x == 0.0 => 0.0,
            Self::Sign => x.signum(),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Self::Erf => libm::erf(x),
            Self::IsFinite => f64::from(u8::from(x.is_finite())),
        }
    }

    /// The derivative at `x`, where `y` is the value there.
    fn slope(self, x: &Expr, y: &Expr) -> Expr {
        match self {
            Self::Neg => (-1.0).into(),
            Self::Exp => y.clone(),
            Self::Log => 1.0 / x.clone(),
            Self::Sqrt => 0.5 / y.clone(),
            Self::Rsqrt => y * y * y * -0.5,
            Self::Abs => x.sign(),
            Self::Sign | Self::IsFinite => 0.0.into(),
            Self::Tanh => 1.0 - y * y,
            Self::Sigmoid => y * (1.0 - y.clone()),
            Self::Softplus => x.sigmoid(),
            Self::Erf => (x * x * -1.0).exp() * std::f64::consts::FRAC_2_SQRT_PI,
        }
    }

    pub(super) fn wgsl(self, x: &str) -> String {
        match self {
            Self::Neg => format!("-{x}"),
            Self::Exp => format!("precise_exp({x})"),
            Self::Log => format!("log({x})"),
            Self::Sqrt => format!("sqrt({x})"),
            Self::Rsqrt => format!("T(1.0) / sqrt({x})"),
            Self::Abs => format!("abs({x})"),
            Self::Sign => format!("sign({x})"),
            Self::Tanh => format!("safe_tanh({x})"),
            Self::Sigmoid => format!("sigmoid({x})"),
            Self::Softplus => format!("softplus({x})"),
            Self::Erf => format!("erf({x})"),
            Self::IsFinite => format!("is_finite({x})"),
        }
    }
}

impl Binary {
    pub(super) fn value(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            Self::Max => a.max(b),
            Self::Min => a.min(b),
            Self::Greater => f64::from(u8::from(a > b)),
            Self::Atan2 => a.atan2(b),
        }
    }

    pub(super) fn wgsl(self, a: &str, b: &str) -> String {
        match self {
            Self::Add => format!("{a} + {b}"),
            Self::Sub => format!("{a} - {b}"),
            Self::Mul => format!("{a} * {b}"),
            Self::Div => format!("{a} / {b}"),
            Self::Max => format!("max({a}, {b})"),
            Self::Min => format!("min({a}, {b})"),
            Self::Greater => format!("select(T(0.0), T(1.0), {a} > {b})"),
            Self::Atan2 => format!("angle({a}, {b})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Program;
    use super::*;

    fn value(e: &Expr, x: &[f64]) -> f64 {
        Program::new(e.clone()).value(x, &mut Vec::new())
    }

    #[test]
    fn derivatives_agree_with_differences() {
        let (x, y) = (Expr::input(0), Expr::input(1));
        let formulas = [
            (&x * &y).tanh() + x.sigmoid() / (&y * &y + 1.0),
            x.gelu() * y.softplus() - x.leaky_relu(0.1),
            x.max(&y).exp() + x.min(0.3) * (&y * &y + 2.0).sqrt().log(),
            (&x * &x + 0.5).rsqrt() * y.abs() + y.erf() * x.relu(),
        ];
        let h = 1e-6;
        for e in &formulas {
            for at in [[0.7, -0.4], [-1.2, 0.9], [2.5, 1.5]] {
                for i in 0..2 {
                    let (mut up, mut down) = (at, at);
                    up[i] += h;
                    down[i] -= h;
                    let slope = (value(e, &up) - value(e, &down)) / (2.0 * h);
                    let exact = value(&e.derivative(i), &at);
                    assert!(
                        (slope - exact).abs() < 1e-7 * (1.0 + exact.abs()),
                        "{e:?} at {at:?}: {slope} {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn primitives_are_safe_far_out() {
        for v in [-1e4, 1e4] {
            let x = Expr::input(0);
            for e in [x.tanh(), x.sigmoid(), x.softplus(), x.gelu(), x.erf()] {
                assert!(value(&e, &[v]).is_finite() && value(&e.derivative(0), &[v]).is_finite());
            }
        }
    }
}
