//! `crossweave devices`.

use clap::Args;

use super::{Verdict, show, table, text_of};
use crate::error::Result;
use crate::eval::choices::ChoicesFolder;
use crate::gpu::{AdapterFacts, Class, Style, adapters, choice};

/// What `devices` takes.
#[derive(Args, Debug)]
pub struct Options {
    /// Which one would be taken: an index, or part of a name
    #[arg(long, value_name = "DEVICE", env = "CROSSWEAVE_DEVICE", hide_env_values = true)]
    device: Option<String>,
}

/// Lists the adapters.
///
/// # Errors
/// No adapter, or none that `--device` fits.
pub fn run(options: &Options) -> Result<Verdict> {
    let found = adapters();
    let chosen = choice(found.iter().map(|a| a.name.as_str()), options.device.as_deref())?;
    let mut rows = table(
        &["", "index", "name", "kind", "backend", "driver", "binding", "buffer", "workgroup", "features"],
        &[1, 6, 7, 8],
    );
    for (i, adapter) in found.iter().enumerate() {
        let index = i.to_string();
        let mut row = vec![if i == chosen { "*" } else { "" }.to_owned(), index];
        row.extend([&adapter.name, &adapter.kind, &adapter.backend, &adapter.driver].map(String::clone));
        row.extend([size(adapter.max_binding), size(adapter.max_buffer)]);
        row.push(format!("{}, {} threads", size(adapter.workgroup_memory.into()), adapter.invocations));
        row.push(features(adapter));
        rows.add_row(row);
    }
    let why = reason(options.device.as_deref(), &found, chosen);
    let taken = &found[chosen];
    show(&format!("{}\n* taken: {} ({why})\n{}", text_of(&rows), taken.name, kernels(taken)))?;
    Ok(Verdict::Good)
}

fn reason(asked: Option<&str>, found: &[AdapterFacts], chosen: usize) -> String {
    match (asked, found.len()) {
        (Some(asked), _) => format!("it fits \"{asked}\", from --device or CROSSWEAVE_DEVICE"),
        (None, 1) if found[chosen].class == Class::Software => {
            "the only adapter; it is a software driver: install your GPU's Vulkan driver if there is a GPU"
                .into()
        }
        (None, 1) => "the only adapter".into(),
        (None, _) => "the first of discrete GPU, integrated GPU, virtual GPU, software; \
                      --device or CROSSWEAVE_DEVICE take another"
            .into(),
    }
}

/// Which kernels an adapter gets, and why.
fn kernels(adapter: &AdapterFacts) -> String {
    let software = adapter.class == Class::Software;
    let style = match adapter.style(None) {
        Ok(Style::Subgroup) => "subgroup: a software driver, whose invocations share loads",
        Ok(Style::Workgroup) => "workgroup: a GPU, whose invocations share tiles",
        _ => "direct: nothing is shared, as the driver has no subgroups that fit",
    };
    let f32 = match (adapter.splits(None), software) {
        (true, _) => "fused multiply-adds, or three products of f16 on matrices where that measures faster",
        (false, true) => "fused multiply-adds: a software driver's matrices are no faster",
        (false, false) => "fused multiply-adds: the driver lists no matrices that fit",
    };
    let f16 = adapter.cooperative_matrix.map_or_else(
        || {
            "no: the driver lists no square matrices of f16 with f32 sums and subgroups of a known size"
                .into()
        },
        |side| format!("matrices of {side} x {side}"),
    );
    let tiles = match (software, ChoicesFolder::of_user()) {
        (true, _) => "planned: software drivers are not measured".into(),
        (_, Some(folder)) => {
            format!("measured at their first use, remembered in {}", folder.path().display())
        }
        (_, None) => "measured in every process: there is no folder of caches (CROSSWEAVE_CACHE)".into(),
    };
    let mut rows = table(&["kernels", ""], &[]);
    rows.add_row(["style", style]);
    rows.add_row(["products in f32", f32]);
    rows.add_row(["products in f16", &f16]);
    rows.add_row(["tiles", &tiles]);
    format!("\n{}\n", text_of(&rows))
}

fn features(adapter: &AdapterFacts) -> String {
    let all = [
        ("subgroups", adapter.subgroup.is_some()),
        ("f16", adapter.f16),
        ("timestamps", adapter.timestamps),
        ("cooperative matrices", adapter.cooperative_matrix.is_some()),
    ];
    let there: Vec<_> = all.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    if there.is_empty() { "none".into() } else { there.join(", ") }
}

/// Bytes for a person.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    let value = bytes as f64 / 1024f64.powi(power as i32);
    if value.fract() == 0.0 {
        format!("{value} {}", units[power])
    } else {
        format!("{value:.1} {}", units[power])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (128 << 20, "128 MiB"), (u64::MAX, "16 EiB"), (1536, "1.5 KiB")];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }
}
