//! The Swin transformer (Liu et al., ICCV 2021) as a backbone: pictures in, each stage's grid of vectors out.
//!
//! A grid's rows lie one after another; windows are read in place, so nothing is cut, rolled or merged in memory but by
//! the patch merging between stages.

use serde::{Deserialize, Serialize};

use super::{Dropouts, Init, Layout, ParamSpec, Role, Scope, layer_norm, layout, linear, linear_plus, mlp};
use crate::error::{Error, Result};
use crate::ops::{Act, Window, gelu_is_apart, map, materialize, recompute};
use crate::tensor::{Device, Tensor};

/// Epsilon of every layer norm.
const EPS: f64 = 1e-5;
/// Added to scores of rows that the roll has made neighbours: as the published code has it, no infinity.
const APART: f64 = -100.0;
/// Deviation of random beginnings.
const DEVIATION: f64 = 0.02;
/// The stages.
pub const STAGES: usize = 4;
/// Pixels of a picture's side for each row of the last grid, where patches are 4 pixels wide; a window is as wide.
const REDUCTION: usize = 32;
/// A block's table of what relative places add to scores, `[places, heads]`.
pub const TABLE: &str = "relative_position_bias_table";
/// Sizes past this are slips or hostile, and their products would overflow.
const MAX_SIZE: usize = 1 << 16;
/// And pictures past this: the places of a window grow with the fourth power.
const MAX_PICTURE: usize = 2048;
/// Bytes between the parts of a tensor that are bound one by one, at most.
const PLACES: usize = 4096;
/// Blocks of a stage past which a configuration is a slip or hostile.
const MAX_DEPTH: usize = 1000;

/// What makes a Swin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Width and height of a picture: a multiple of 32. Windows are of a 32nd of it.
    pub img_size: usize,
    /// Pixels of a patch's side.
    #[serde(default = "four")]
    pub patch_size: usize,
    /// Colours.
    #[serde(default = "three")]
    pub in_chans: usize,
    /// Width of the first stage; each later one's is doubled.
    pub embed_dim: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Heads of each stage; they divide its width.
    pub num_heads: Vec<usize>,
    /// Width between a block's two linear maps, by its own width.
    #[serde(default = "mlp_ratio")]
    pub mlp_ratio: f64,
    /// The chance that training leaves out a picture's last block; it grows from 0 at the first.
    #[serde(default)]
    pub drop_path_rate: f64,
}

fn four() -> usize {
    4
}

fn three() -> usize {
    3
}

fn mlp_ratio() -> f64 {
    4.0
}

/// A stage's place in the network.
#[derive(Clone, Copy, Debug)]
struct Stage {
    /// Width of a row.
    width: usize,
    heads: usize,
    grid: usize,
    window: usize,
    /// What odd blocks roll the grid by.
    shift: usize,
}

impl Config {
    /// Whether the sizes make a backbone.
    ///
    /// # Errors
    /// Names what contradicts.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str, expected: String, found: String| {
            Err(Error::new(what).at("Swin configuration").expected(expected).found(found))
        };
        let sizes = [
            ("img_size", self.img_size),
            ("patch_size", self.patch_size),
            ("in_chans", self.in_chans),
            ("embed_dim", self.embed_dim),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, n)| !(1..=MAX_SIZE).contains(n)) {
            return wrong(
                "a size is out of range",
                format!("{name} of 1 to {MAX_SIZE}"),
                format!("{name} {size}"),
            );
        }
        if !self.img_size.is_multiple_of(REDUCTION) || self.img_size > MAX_PICTURE {
            return wrong(
                "pictures of this size have no windows",
                format!("an image size that is a multiple of {REDUCTION}, at most {MAX_PICTURE}"),
                self.img_size.to_string(),
            );
        }
        for (name, list) in [("depths", &self.depths), ("num_heads", &self.num_heads)] {
            if list.len() != STAGES || list.iter().any(|n| !(1..=MAX_DEPTH).contains(n)) {
                return wrong(
                    "the stages are out of range",
                    format!("{name} of {STAGES} stages, each 1 to {MAX_DEPTH}"),
                    format!("{name} {list:?}"),
                );
            }
        }
        let hidden = self.mlp_ratio * self.embed_dim as f64;
        if !(hidden >= 1.0 && hidden <= MAX_SIZE as f64) {
            return wrong(
                "a size is out of range",
                "mlp_ratio of about 4".into(),
                format!("mlp_ratio {}", self.mlp_ratio),
            );
        }
        if !(0.0..1.0).contains(&self.drop_path_rate) {
            return wrong(
                "a chance is out of range",
                "drop_path_rate of at least 0 and below 1".into(),
                format!("drop_path_rate {}", self.drop_path_rate),
            );
        }
        let smallest = self.patch_size << (STAGES - 1);
        if !self.img_size.is_multiple_of(smallest) {
            return wrong(
                "the patches do not divide the picture",
                format!("img_size {} to be a multiple of 8 patches", self.img_size),
                format!("patch_size {}", self.patch_size),
            );
        }
        for s in 0..STAGES {
            let stage = self.stage(s);
            if !stage.width.is_multiple_of(stage.heads) {
                return wrong(
                    "the heads do not divide the width",
                    format!("num_heads of stage {s} to divide {}", stage.width),
                    stage.heads.to_string(),
                );
            }
            if !stage.grid.is_multiple_of(stage.window) {
                return wrong(
                    "the windows do not divide the grid",
                    format!("windows of {} in a grid of {}", stage.window, stage.grid),
                    format!("patch_size {}", self.patch_size),
                );
            }
        }
        Ok(())
    }

    /// The configuration of weights by their names' shapes, for pictures of the size whose windows they have.
    ///
    /// # Errors
    /// Weights of another model.
    pub fn of_shapes(shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<Self> {
        let missing = |name: &str| {
            Error::new("these are no weights of a Swin").expected(format!("a tensor {name}")).found("none")
        };
        let at = |name: &str, axis: usize| {
            shape(name).and_then(|dims| dims.get(axis).copied()).ok_or_else(|| missing(name))
        };
        let blocks = |s: usize| {
            (0..MAX_DEPTH)
                .take_while(|i| shape(&format!("layers.{s}.blocks.{i}.norm1.weight")).is_some())
                .count()
        };
        let heads = |s: usize| at(&format!("layers.{s}.blocks.0.attn.{TABLE}"), 1);
        let patch = "patch_embed.proj.weight";
        let embed_dim = at(patch, 0)?;
        let side = at(&format!("layers.0.blocks.0.attn.{TABLE}"), 0)?.isqrt();
        let hidden = at("layers.0.blocks.0.mlp.fc1.weight", 0)?;
        let config = Self {
            img_size: REDUCTION * side.div_ceil(2),
            patch_size: at(patch, 2)?,
            in_chans: at(patch, 1)?,
            embed_dim,
            depths: (0..STAGES).map(blocks).collect(),
            num_heads: (0..STAGES).map(heads).collect::<Result<_>>()?,
            mlp_ratio: hidden as f64 / embed_dim.max(1) as f64,
            drop_path_rate: 0.0,
        };
        config.check()?;
        Ok(config)
    }

    /// The width of a window, which the published constructor takes from the picture's size.
    pub fn window(&self) -> usize {
        self.img_size / REDUCTION
    }

    /// Rows and columns of a stage's grid.
    pub fn grid(&self, stage: usize) -> usize {
        (self.img_size / self.patch_size) >> stage
    }

    /// Width of a stage's vectors.
    pub fn width(&self, stage: usize) -> usize {
        self.embed_dim << stage
    }

    /// The values of a picture's largest tensor on a device: hidden ones, perhaps with what their GELU is taken of, or, on
    /// the way back, the gradients of queries, keys and values with those of each window's bias.
    pub fn values(&self, device: &Device) -> usize {
        let of_hidden = if gelu_is_apart(device) { 1 } else { 2 };
        let of_stage = |s: usize| {
            let Stage { width, heads, grid, window, .. } = self.stage(s);
            grid * grid * (of_hidden * self.hidden(s)).max(3 * width + heads * window * window)
        };
        (0..STAGES).map(of_stage).max().unwrap_or(1)
    }

    /// The values of the largest bias, that of every window of a rolled grid.
    fn bias_values(&self) -> usize {
        let of_stage = |s: usize| {
            let Stage { heads, grid, window, shift, .. } = self.stage(s);
            let windows = if shift > 0 && self.depths[s] > 1 { (grid / window).pow(2) } else { 1 };
            windows * heads * window.pow(4)
        };
        (0..STAGES).map(of_stage).max().unwrap_or(1)
    }

    /// Whether a device can bind what no smaller batch makes smaller.
    ///
    /// # Errors
    /// Pictures that are too large for it.
    pub fn check_on(&self, device: &Device) -> Result<()> {
        let limit = device.gpu().map_or(usize::MAX, |gpu| gpu.facts().max_binding as usize);
        let needed = 4 * self.bias_values().max(self.values(device));
        if needed <= limit {
            return Ok(());
        }
        Err(Error::new("pictures of this size are more than this adapter can bind")
            .at("--image_size")
            .expected(format!("no tensor past {} MB", limit >> 20))
            .found(format!("{} MB at {}", needed >> 20, self.img_size))
            .cure("give a smaller --image_size, or another --device"))
    }

    /// Pictures at a time that make no tensor that the device could not bind.
    pub fn at_once(&self, device: &Device) -> usize {
        let limit = device.gpu().map_or(usize::MAX, |gpu| gpu.facts().max_binding as usize);
        // Gradients that share a tensor begin at places that can be bound.
        (limit.saturating_sub(PLACES) / (4 * self.values(device))).max(1)
    }

    fn hidden(&self, stage: usize) -> usize {
        (self.width(stage) as f64 * self.mlp_ratio) as usize
    }

    fn stage(&self, s: usize) -> Stage {
        let (grid, window) = (self.grid(s), self.window());
        let whole = grid <= window;
        Stage {
            width: self.width(s),
            heads: self.num_heads[s],
            grid,
            window: if whole { grid } else { window },
            shift: if whole { 0 } else { window / 2 },
        }
    }

    /// The side of a stage's tables of relative positions.
    pub fn table_side(&self, stage: usize) -> usize {
        2 * self.stage(stage).window - 1
    }

    /// The parameters, their names after `prefix`, as in the published state dict; their group is "swin".
    pub fn parameters(&self, prefix: &str) -> Vec<ParamSpec> {
        layout(|l| l.group("swin", |l| self.list(l, prefix)))
    }

    fn list(&self, l: &mut Layout, prefix: &str) {
        let patch = [self.embed_dim, self.in_chans, self.patch_size, self.patch_size];
        let bound = Init::Uniform(1.0 / (patch[1..].iter().product::<usize>() as f64).sqrt());
        l.push(format!("{prefix}patch_embed.proj.weight"), &patch, bound.clone(), Role::Encoder);
        l.push(format!("{prefix}patch_embed.proj.bias"), &patch[..1], bound, Role::Encoder);
        norm(l, &format!("{prefix}patch_embed.norm"), self.embed_dim);
        for s in 0..STAGES {
            let (width, hidden, side) = (self.width(s), self.hidden(s), self.table_side(s));
            for i in 0..self.depths[s] {
                let at = format!("{prefix}layers.{s}.blocks.{i}");
                norm(l, &format!("{at}.norm1"), width);
                let table = format!("{at}.attn.{TABLE}");
                l.push(table, &[side * side, self.num_heads[s]], Init::Normal(DEVIATION), Role::Encoder);
                dense(l, &format!("{at}.attn.qkv"), width, 3 * width);
                dense(l, &format!("{at}.attn.proj"), width, width);
                norm(l, &format!("{at}.norm2"), width);
                dense(l, &format!("{at}.mlp.fc1"), width, hidden);
                dense(l, &format!("{at}.mlp.fc2"), hidden, width);
            }
            if s + 1 < STAGES {
                let at = format!("{prefix}layers.{s}.downsample");
                let (from, to) = (4 * width, 2 * width);
                l.push(format!("{at}.reduction.weight"), &[to, from], Init::Normal(DEVIATION), Role::Encoder);
                norm(l, &format!("{at}.norm"), from);
            }
        }
        for s in 0..STAGES {
            norm(l, &format!("{prefix}{}", norm_name(s)), self.width(s));
        }
    }

    /// The chance that a block's two branches are left out, by its number among all.
    fn drop_rate(&self, block: usize) -> f32 {
        let blocks: usize = self.depths.iter().sum();
        (self.drop_path_rate * block as f64 / (blocks.max(2) - 1) as f64) as f32
    }
}

fn norm(l: &mut Layout, at: &str, width: usize) {
    l.push(format!("{at}.weight"), &[width], Init::Const(1.0), Role::Encoder);
    l.push(format!("{at}.bias"), &[width], Init::Const(0.0), Role::Encoder);
}

fn dense(l: &mut Layout, at: &str, from: usize, to: usize) {
    l.push(format!("{at}.weight"), &[to, from], Init::Normal(DEVIATION), Role::Encoder);
    l.push(format!("{at}.bias"), &[to], Init::Const(0.0), Role::Encoder);
}

/// For a block's table in place of one of another size: both sides, and the heads.
pub fn resized_table(name: &str, found: &[usize], own: &[usize]) -> Option<[usize; 3]> {
    let ([rows, heads], [own_rows, own_heads]) = (found, own) else { return None };
    let (from, to) = (rows.isqrt(), own_rows.isqrt());
    let square = from * from == *rows && to * to == *own_rows && heads == own_heads && from > 0;
    (name.ends_with(TABLE) && square && from != to).then_some([from, to, *heads])
}

fn norm_name(stage: usize) -> String {
    if stage + 1 == STAGES { "norm".into() } else { format!("norm_{stage}") }
}

/// How a backbone is run.
pub struct Run<'a> {
    /// The parameters.
    pub scope: Scope<'a>,
    /// What makes it.
    pub config: &'a Config,
    /// The dropouts of training, which leave out whole branches.
    pub dropouts: Option<&'a Dropouts>,
    /// Whether blocks run again on the way back instead of keeping what their gradients read.
    pub recomputed: bool,
}

impl Run<'_> {
    /// Each stage's output before the merging, `[pictures, grid * grid, width]`, not normalised, of pictures `[pictures,
    /// colours, size, size]`. `note` hears of intermediate results: `patch_embed`, `layers.S.blocks.I`,
    /// `layers.S.downsample`.
    pub fn stages(&self, x: &Tensor, note: &mut dyn FnMut(&str, &Tensor)) -> Vec<Tensor> {
        let mut x = self.patches(x);
        note("patch_embed", &x);
        let (mut all, mut done) = (Vec::with_capacity(STAGES), 0);
        for s in 0..STAGES {
            let (stage, at) = (self.config.stage(s), self.scope.sub("layers").sub(&s.to_string()));
            let places = Places::of(stage, &x.device());
            for i in 0..self.config.depths[s] {
                let block = at.sub("blocks").sub(&i.to_string());
                let shift = if i % 2 == 0 { 0 } else { stage.shift };
                x = self.block(&block, stage, &places, shift, self.config.drop_rate(done), &x);
                note(&format!("layers.{s}.blocks.{i}"), &x);
                done += 1;
            }
            all.push(x.clone());
            if s + 1 < STAGES {
                x = merged(&at.sub("downsample"), &x, stage.grid);
                note(&format!("layers.{s}.downsample"), &x);
            }
        }
        all
    }

    /// A stage's output through its own norm.
    pub fn normed(&self, stages: &[Tensor], stage: usize) -> Tensor {
        layer_norm(&self.scope.sub(&norm_name(stage)), &stages[stage], EPS)
    }

    /// Patches as vectors, `[pictures, grid * grid, embed]`.
    fn patches(&self, x: &Tensor) -> Tensor {
        let Config { img_size, patch_size: p, in_chans, embed_dim, .. } = *self.config;
        let (n, grid) = (x.shape()[0], img_size / p);
        let rows = x.reshape([n * in_chans, grid, p, grid, p]);
        let apart =
            materialize(rows.view().permute(&[0, 1, 3, 2, 4])).reshape([n, in_chans, grid * grid, p * p]);
        let flat =
            materialize(apart.view().permute(&[0, 2, 1, 3])).reshape([n, grid * grid, in_chans * p * p]);
        let at = self.scope.sub("patch_embed");
        let proj = at.sub("proj");
        let weight = proj.at("weight").reshape([embed_dim, in_chans * p * p]);
        layer_norm(&at.sub("norm"), &flat.linear(&weight, Some(proj.at("bias")), Act::None), EPS)
    }

    /// `y = x + attention(norm1(x))`, then `y + fc2(gelu(fc1(norm2(y))))`.
    fn block(
        &self,
        at: &Scope,
        stage: Stage,
        places: &Places,
        shift: usize,
        drop: f32,
        x: &Tensor,
    ) -> Tensor {
        let table = at.sub("attn").at(TABLE);
        let bias = places.bias(table, shift);
        // A branch that is left out is so for a picture; one that is kept is divided by the chance that it is.
        let dropped = self.dropouts.filter(|_| drop > 0.0).map(|dropouts| {
            let ones = x.device().full([x.shape()[0]], 1.0);
            [0, 1].map(|_| dropouts.apply(&ones, drop))
        });
        let names = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"];
        let scopes = names.map(|name| name.split('.').fold(at.clone(), |at, name| at.sub(name)));
        let window = Window { grid: stage.grid, size: stage.window, shift };
        let (heads, kept) = (stage.heads, dropped.as_ref());
        if !self.recomputed {
            return block(&scopes, window, heads, x, &bias, kept);
        }
        let values = scopes.iter().flat_map(|at| ["weight", "bias"].map(|kind| at.at(kind)));
        let inputs: Vec<&Tensor> =
            [x, &bias].into_iter().chain(values).chain(dropped.iter().flatten()).collect();
        recompute(&inputs, move |x| {
            let params = names.iter().enumerate().flat_map(|(i, name)| {
                ["weight", "bias"]
                    .into_iter()
                    .zip([2 * i + 2, 2 * i + 3])
                    .map(move |(kind, k)| (name, kind, k))
            });
            let params: super::Params =
                params.map(|(name, kind, k)| (format!("{name}.{kind}"), x[k].clone())).collect();
            let root = params.root();
            let scopes = names.map(|name| name.split('.').fold(root.clone(), |at, name| at.sub(name)));
            let kept = x.get(14).map(|first| [first.clone(), x[15].clone()]);
            block(&scopes, window, heads, &x[0], &x[1], kept.as_ref())
        })
    }
}

fn block(
    [norm1, qkv, proj, norm2, fc1, fc2]: &[Scope; 6],
    window: Window,
    heads: usize,
    x: &Tensor,
    bias: &Tensor,
    kept: Option<&[Tensor; 2]>,
) -> Tensor {
    let plus = |x: &Tensor, kept: Option<&Tensor>, branch: &dyn Fn(Option<&Tensor>) -> Tensor| match kept {
        None => branch(Some(x)),
        Some(kept) => {
            let kept = kept.view().repeat(1, 1).repeat(2, 1);
            map(vec![x.view(), branch(None).view(), kept], |x| &x[0] + &x[1] * &x[2])
        }
    };
    let scale = 1.0 / ((x.shape()[2] / heads) as f64).sqrt();
    let packed = linear(qkv, &layer_norm(norm1, x, EPS), Act::None);
    let mixed = packed.window_attention(window, heads, scale, bias);
    let y = plus(x, kept.map(|k| &k[0]), &|residual| linear_plus(proj, &mixed, residual));
    let normed = layer_norm(norm2, &y, EPS);
    plus(&y, kept.map(|k| &k[1]), &|residual| mlp(fc1, Act::Gelu, fc2, &normed, residual))
}

/// Four neighbours of a grid as one: (even row, even column), (odd, even), (even, odd), (odd, odd).
fn merged(at: &Scope, x: &Tensor, grid: usize) -> Tensor {
    let (n, width) = (x.shape()[0], x.shape()[2]);
    let pairs = x.reshape([n * grid / 2, 2, grid / 2, 2, width]);
    let four = materialize(pairs.view().permute(&[0, 2, 3, 1, 4]));
    let four = four.reshape([n, grid * grid / 4, 4 * width]);
    layer_norm(&at.sub("norm"), &four, EPS).linear(at.at("reduction.weight"), None, Act::None)
}

/// Which row of a table belongs to a query and a key of a window, and which rows the roll keeps apart.
struct Places {
    stage: Stage,
    /// `[rows * rows]` of a window's rows.
    index: Tensor,
    /// Of the rolled grid, a number for each region, `[windows, rows]`.
    regions: Tensor,
}

impl Places {
    fn of(stage: Stage, device: &Device) -> Self {
        let Stage { grid, window, shift, .. } = stage;
        let (rows, side) = (window * window, 2 * window - 1);
        let at = |row: usize| (row / window, row % window);
        let relative = |k: usize| {
            let ((y, x), (v, u)) = (at(k / rows), at(k % rows));
            ((y + window - 1 - v) * side + x + window - 1 - u) as f32
        };
        let index: Vec<f32> = (0..rows * rows).map(relative).collect();
        let across = grid / window;
        // The rolled grid's end comes from its other side; before that, its last window begins.
        let class = |place: usize| usize::from(place >= grid - window) + usize::from(place >= grid - shift);
        let region = |k: usize| {
            let ((down, right), (y, x)) = ((k / rows / across, k / rows % across), at(k % rows));
            (3 * class(down * window + y) + class(right * window + x)) as f32
        };
        let regions: Vec<f32> = (0..across * across * rows).map(region).collect();
        let (index, regions) =
            (device.tensor([rows * rows], &index), device.tensor([across * across, rows], &regions));
        Self { stage, index, regions }
    }

    /// What is added to scores, `[1 or windows, heads, rows, rows]`, from a table `[places, heads]`.
    fn bias(&self, table: &Tensor, shift: usize) -> Tensor {
        let Stage { heads, window, .. } = self.stage;
        let rows = window * window;
        let own = table.gather(&self.index).reshape([rows, rows, heads]);
        let own = own.view().permute(&[2, 0, 1]);
        if shift == 0 {
            return materialize(own).reshape([1, heads, rows, rows]);
        }
        let windows = self.regions.shape()[0];
        let query = self.regions.view().repeat(1, heads).repeat(3, rows);
        let key = self.regions.view().repeat(1, rows).repeat(1, heads);
        map(vec![own.repeat(0, windows), query, key], |x| {
            let off = &x[1] - &x[2];
            (&off * &off).greater(0.0).select(&x[0] + APART, x[0].clone())
        })
    }
}
