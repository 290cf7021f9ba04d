//! legion
fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(word) if word == "worker" => legiond::labor::worker_main(args),
        _ => std::process::ExitCode::from(2),
    }
}
