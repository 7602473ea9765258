//! The program: see [`crossweave::cli`].

fn main() -> std::process::ExitCode {
    crossweave::cli::main(std::env::args_os().collect())
}
