//! Ctrl-C: the first asks the command to finish its step and save, the second exits at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

static STOP: AtomicBool = AtomicBool::new(false);
static WATCHED: OnceLock<bool> = OnceLock::new();

/// Watches for Ctrl-C (and a polite kill) from now on. The flag is true once it came.
///
/// # Errors
/// The system gives no way to watch.
pub fn watch() -> Result<&'static AtomicBool> {
    let watched = WATCHED.get_or_init(|| {
        let handler = || {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        };
        ctrlc::set_handler(handler).is_ok()
    });
    if *watched { Ok(&STOP) } else { Err(Error::new("Ctrl-C cannot be watched for on this system")) }
}
