//! The binary `legion`: it hands the command line to the library, and the library's exit code to the system.

use std::process::ExitCode;

/// A node spends a sixth of its time in glibc's allocator, and a third of that in this one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    legiond::cli::main()
}
