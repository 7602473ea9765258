//! Every operation: its kernel, its f64 definition, its gradient and its registry row, a file a family.

mod adam;
mod attend;
mod attention;
mod backward;
mod checkpoint;
mod dropout;
mod gather;
mod map;
mod matmul;
mod norm;
mod pack;
mod reduce;
pub mod registry;
mod route;
mod rows;
mod share;
mod softmax;
mod top;
mod walk;
mod write;

pub use adam::{AdamState, AdamStep, adam, sum_of_squares};
pub use attend::{Attend, OverQueries, WordsAre};
pub use backward::Grads;
pub use checkpoint::checkpoint;
pub use map::{add, concat, map, materialize};
pub use matmul::{Act, Linears};
pub(crate) use pack::places;
pub use pack::{lay_out, pack, unpack};
pub use reduce::{scaled_sum_of, sum_of};
pub use route::{route, route_shares};
pub use share::stack;
pub use write::write;

pub use crate::tensor::Expr;
