//! The program: see [`crossweave::cli`].

fn main() -> std::process::ExitCode {
    // Without a session's folder (ssh, containers) Mesa's device-select layer prints errors before every result that look
    // like ours. It only puts adapters in order, and the choice is ours.
    if !std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|folder| std::path::Path::new(&folder).is_dir()) {
        // SAFETY: nothing else runs in the process yet.
        #[allow(unsafe_code, reason = "the environment must not change while others read it")]
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
        }
    }
    crossweave::cli::main(std::env::args_os().collect())
}
