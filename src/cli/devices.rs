//! `crossweave devices`.

use clap::Args;

use super::{Verdict, show, table, text_of};
use crate::error::Result;
use crate::gpu::{AdapterFacts, Class, adapters, choice};

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
    show(&format!("{}\n* taken: {} ({why})\n", text_of(&rows), found[chosen].name))?;
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
