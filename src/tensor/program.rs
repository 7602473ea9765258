//! A formula as a list of steps: what a shader's text, the f64 reference and a kernel's key are made from.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::expr::{Binary, Expr, Node, Unary};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Input(usize),
    /// An index into the constants: their values are parameters, not text.
    Const(usize),
    Unary(Unary, usize),
    Binary(Binary, usize, usize),
    Select(usize, usize, usize),
}

/// A formula as a list of steps, each using earlier ones; the last is the result.
#[derive(Clone, Debug)]
pub struct Program {
    steps: Vec<Step>,
    constants: Vec<f64>,
    expr: Expr,
}

impl Program {
    /// Orders a formula's parts; shared parts become one step.
    pub fn new(expr: Expr) -> Self {
        let mut program = Self { steps: Vec::new(), constants: Vec::new(), expr: expr.clone() };
        program.add(&expr, &mut Vec::new());
        program
    }

    fn add(&mut self, e: &Expr, seen: &mut Vec<(*const (), usize)>) -> usize {
        if let Some((_, i)) = seen.iter().rev().find(|(place, _)| *place == e.place()) {
            return *i;
        }
        let step = match e.node() {
            Node::Input(i) => Step::Input(*i),
            Node::Const(v) => {
                self.constants.push(*v);
                Step::Const(self.constants.len() - 1)
            }
            Node::Unary(op, x) => Step::Unary(*op, self.add(x, seen)),
            Node::Binary(op, a, b) => {
                let a = self.add(a, seen);
                Step::Binary(*op, a, self.add(b, seen))
            }
            Node::Select(c, a, b) => {
                let c = self.add(c, seen);
                let a = self.add(a, seen);
                Step::Select(c, a, self.add(b, seen))
            }
        };
        let same = self.steps.iter().position(|s| *s == step);
        let i = same.unwrap_or_else(|| {
            self.steps.push(step);
            self.steps.len() - 1
        });
        seen.push((e.place(), i));
        i
    }

    /// The formula.
    pub fn expr(&self) -> &Expr {
        &self.expr
    }

    /// Whether it reads input `i`.
    pub fn reads(&self, i: usize) -> bool {
        self.expr.reads(i)
    }

    /// The constants, in the order the shader numbers them.
    pub fn constants(&self) -> &[f64] {
        &self.constants
    }

    /// A hash of the structure, constants left out.
    pub fn key(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        self.steps.hash(&mut hash);
        hash.finish()
    }

    /// Operations per element.
    pub fn flops(&self) -> usize {
        self.steps.iter().filter(|s| !matches!(s, Step::Input(_) | Step::Const(_))).count()
    }

    /// WGSL statements that compute the steps as `v0, v1, ..` over type `T`, and the name of the result.
    /// `input(i)` and `constant(i)` name what they read.
    pub fn wgsl(
        &self,
        input: impl Fn(usize) -> String,
        constant: impl Fn(usize) -> String,
    ) -> (String, String) {
        let mut text = String::new();
        let v = |i: &usize| format!("v{i}");
        for (n, step) in self.steps.iter().enumerate() {
            let value = match step {
                Step::Input(i) => input(*i),
                Step::Const(i) => format!("T({})", constant(*i)),
                Step::Unary(op, x) => op.wgsl(&v(x)),
                Step::Binary(op, a, b) => op.wgsl(&v(a), &v(b)),
                Step::Select(c, a, b) => format!("select({}, {}, {} != T(0.0))", v(b), v(a), v(c)),
            };
            let _ = writeln!(text, "    let v{n} = {value};");
        }
        (text, format!("v{}", self.steps.len() - 1))
    }

    /// The value in f64, one element.
    pub fn value(&self, x: &[f64], scratch: &mut Vec<f64>) -> f64 {
        scratch.clear();
        for step in &self.steps {
            let value = match *step {
                Step::Input(i) => x[i],
                Step::Const(i) => self.constants[i],
                Step::Unary(op, a) => op.value(scratch[a]),
                Step::Binary(op, a, b) => op.value(scratch[a], scratch[b]),
                Step::Select(c, a, b) => scratch[if scratch[c] != 0.0 { a } else { b }],
            };
            scratch.push(value);
        }
        scratch[self.steps.len() - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_parts_are_one_step() {
        let x = Expr::input(0);
        let t = x.tanh();
        let p = Program::new(&t * &t + &t);
        assert_eq!(p.flops(), 3);
    }

    #[test]
    fn equal_parts_are_one_step_however_they_came_about() {
        let (x, y) = (Expr::input(0), Expr::input(0));
        let p = Program::new(x.tanh() * (y.tanh() + y.tanh()));
        assert_eq!((p.flops(), p.value(&[0.5], &mut Vec::new())), (3, 2.0 * 0.5f64.tanh().powi(2)));
    }
}
