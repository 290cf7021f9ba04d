//! The binary `legion`: it hands the command line to the library, and the library's exit code to the system.

use std::process::ExitCode;

fn main() -> ExitCode {
    legiond::cli::main()
}
