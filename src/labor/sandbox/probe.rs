//! A worker that tries what it is told (debug builds only): tests hold the sandbox to its word with it. It enters the sandbox
//! exactly as a working one does, and then makes raw system calls instead of reading frames. It must not know which are refused.
//!
//! One JSON object a line on stdin, `{"call": number, "args": [number, text or list of bytes, ...], "thread": bool}`, is answered with
//! `{"result": number, "errno": number}`.

use std::ffi::CString;
use std::io::{BufRead, Write};

use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Attempt {
    call: libc::c_long,
    #[serde(default)]
    args: Vec<Argument>,
    /// In a thread that was started after the sandbox.
    #[serde(default)]
    thread: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Argument {
    Number(libc::c_long),
    Text(CString),
    /// A structure, for example an address.
    Bytes(Vec<u8>),
}

pub(crate) fn run() -> std::io::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let attempt: Attempt = serde_json::from_str(&line?).map_err(std::io::Error::other)?;
        let (result, errno) = if attempt.thread {
            let thread = std::thread::Builder::new().spawn(move || make(&attempt))?;
            thread.join().unwrap_or((-1, -1))
        } else {
            make(&attempt)
        };
        println!("{}", json!({"result": result, "errno": errno}));
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn make(attempt: &Attempt) -> (libc::c_long, i32) {
    let mut words = [0; 6];
    for (word, argument) in words.iter_mut().zip(&attempt.args) {
        *word = match argument {
            Argument::Number(number) => *number,
            Argument::Text(text) => text.as_ptr() as libc::c_long,
            Argument::Bytes(bytes) => bytes.as_ptr() as libc::c_long,
        };
    }
    let [a, b, c, d, e, f] = words;
    // SAFETY: none is claimed beyond this process, which exists to be refused and does nothing else; texts outlive the call.
    let result = unsafe { libc::syscall(attempt.call, a, b, c, d, e, f) };
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    if result == 0 && attempt.call == libc::SYS_clone {
        // A child that should not be: it leaves the talking to its parent.
        std::process::exit(0);
    }
    (result, if result == -1 { errno } else { 0 })
}
