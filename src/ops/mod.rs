//! Every operation: its kernel, its f64 definition, its gradient and its registry row, a file a family.

mod adam;
mod alias;
mod attention;
mod backward;
mod batch_norm;
mod codegen;
mod cosines;
mod cross_attention;
mod dropout;
#[cfg(test)]
mod gates;
mod gather;
mod gru;
mod hinge;
mod layer_norm;
mod map;
mod matmul;
mod max_grad;
mod norm;
mod pack;
mod paths;
mod recompute;
mod reduce;
pub mod registry;
mod route;
mod rows;
mod softmax;
mod top;
mod write;

pub use adam::{AdamState, AdamStep, adam, sum_of_squares};
pub use alias::stack;
pub use attention::Window;
pub use backward::Grads;
pub use batch_norm::BatchNorm;
pub use cosines::{cosines, mean_cosines};
pub use cross_attention::{CrossAttention, QueryNorm, WordAxis, modulated};
pub use gru::gru;
pub use map::{add, concat, map, materialize};
pub(crate) use matmul::gelu_is_apart;
pub use matmul::{Act, Linears};
pub(crate) use pack::places;
pub use pack::{lay_out, pack, unpack};
pub use paths::Paths;
pub use recompute::recompute;
pub use reduce::{scaled_sum_of, sum_of};
pub use route::{route, route_means, route_shares};
pub use write::{write, write_if_finite};

pub use crate::tensor::Expr;
