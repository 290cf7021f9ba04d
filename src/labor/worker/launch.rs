//! A program of the owner's in the place of this worker: `legion worker ... --run PROGRAM ARGS...`. The sandbox is entered by then;
//! the program takes over process id, group, pipes and parent-death signal, and cannot leave what this process entered. It must not
//! know what the program is for.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// As a shell says it: there is no such program here, or it may not be started.
const NOT_STARTED: u8 = 127;

/// Does not return where the program starts.
pub(super) fn run(command: &[OsString]) -> ExitCode {
    let Some((program, args)) = command.split_first() else {
        eprintln!("--run names no program");
        return ExitCode::from(2);
    };
    let error = Command::new(program).args(args).exec();
    let program = program.to_string_lossy();
    eprintln!(
        "cannot start `{program}`: {error}; what it needs beside the system's folders is named by `exec` and `read` of the skill"
    );
    ExitCode::from(NOT_STARTED)
}

/// What the program starts lives no longer than it does, even when nobody is left to end it: the parent-death signal reaches one
/// process alone. A process of its own, not the program's child, waits for the end of this one and then kills the group.
/// Where the system cannot (Linux before 5.3, others), only the node ends what is left, and not after its own end.
pub(super) fn guard_group() {
    #[cfg(target_os = "linux")]
    guard::start();
}

#[cfg(target_os = "linux")]
mod guard {
    /// Must be called while there is one thread, and before the sandbox, which forbids it.
    pub(super) fn start() {
        // SAFETY: without a group of its own, as when a person calls it, this process has nothing to guard. `fork` in a process of
        // one thread leaves a whole process; its copy makes system calls only, on descriptors that it owns.
        unsafe {
            if libc::getpgrp() != libc::getpid() {
                return;
            }
            let watched = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) as libc::c_int;
            if watched < 0 {
                return;
            }
            match libc::fork() {
                0 => {
                    // A grandchild: the program never has a child that it did not start.
                    if libc::fork() == 0 {
                        wait(watched);
                    }
                    libc::_exit(0);
                }
                child if child > 0 => {
                    libc::waitpid(child, std::ptr::null_mut(), 0);
                }
                _ => {}
            }
            libc::close(watched);
        }
    }

    /// # Safety
    /// In a process of one thread that owns all its descriptors.
    unsafe fn wait(watched: libc::c_int) -> ! {
        // SAFETY: descriptors are numbers; nothing else of this process uses them any more.
        unsafe {
            // The node waits for the end of the program's pipes.
            libc::dup2(watched, 0);
            let closed = libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0);
            if closed != 0 {
                (1..4096).for_each(|descriptor| {
                    libc::close(descriptor);
                });
            }
            let mut end = libc::pollfd {
                fd: 0,
                events: libc::POLLIN,
                revents: 0,
            };
            while libc::poll(&raw mut end, 1, -1) < 0 {}
            libc::kill(0, libc::SIGKILL);
            libc::_exit(0)
        }
    }
}
