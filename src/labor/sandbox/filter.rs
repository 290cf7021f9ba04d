//! The worker's system call filter (seccomp): a list of what is refused, as a program of the kernel's classic BPF. It must not
//! know files; those are Landlock's.
//!
//! A list of what is refused, because what a compute library, a C library or a driver needs is not ours to know. Three things keep it
//! from ageing: numbers newer than this list do not exist for the worker, nor do those of another architecture (i386, x32), and
//! io_uring, which would do refused things by another door, is on it. Assembled here and not with a crate, since those
//! compare single numbers only. The kernel's Documentation/userspace-api/seccomp_filter.rst is the reference.

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long,
    sock_filter, sock_fprog,
};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xC000_00F3;
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
const ARCHITECTURE: u32 = 0;

/// `mseal`, Linux 6.10. All architectures share the numbers from 424 on.
const LAST_KNOWN: c_long = 462;
const X32_BIT: u32 = 0x4000_0000;
/// `struct seccomp_data`: nr, arch, instruction pointer, six arguments (their low words come first here).
const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_ARGUMENTS: u32 = 16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
/// The C library then takes an older call, which can be judged.
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Sockets: with none, there is no network. A connected pair could still send to somebody else's.
const NETWORK: &[c_long] = &[
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
];

/// What a TCP client cannot do without. Which sockets there may be is judged by [`allow_tcp`], whom they reach by Landlock.
const CLIENT: &[c_long] = &[libc::SYS_socket, libc::SYS_connect, libc::SYS_sendto];

/// Other processes, first of all the node, and what is shared with them; and leaving the group that the node kills.
const PROCESSES: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_tkill,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semctl,
    libc::SYS_msgget,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    424, // pidfd_send_signal
    434, // pidfd_open
    438, // pidfd_getfd
    440, // process_madvise
    448, // process_mrelease
];

/// What Landlock does not judge: modes, owners, times and attributes of files, watching them, and files by number.
const FILES: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_fanotify_init,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    452, // fchmodat2
];

/// The kernel's and the machine's own affairs, most of which ask for privileges anyway.
const KERNEL: &[c_long] = &[
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    425, // io_uring_setup
    426, // io_uring_enter
    427, // io_uring_register
    428, // open_tree
    429, // move_mount
    430, // fsopen
    431, // fsconfig
    432, // fsmount
    433, // fspick
    442, // mount_setattr
    443, // quotactl_fd
];

/// The same under the names that only this architecture still has.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_inotify_init,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_kexec_file_load,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// Programs: refused where none may be started.
#[cfg(target_arch = "x86_64")]
const PROGRAMS: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const PROGRAMS: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// Puts the filter on this thread and all that it will start. Needs `no_new_privs`.
pub(super) fn enter(programs: bool, client: bool) -> io::Result<()> {
    if ARCHITECTURE == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut program = assemble(programs, client, std::process::id());
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = sock_fprog {
        len: length,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the `len` instructions that `filter` points to before the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn assemble(programs: bool, client: bool, own_pid: u32) -> Vec<sock_filter> {
    let mut code = vec![
        load(AT_ARCHITECTURE),
        jump(BPF_JEQ, ARCHITECTURE, 1, 0),
        answer(REFUSE),
        load(AT_NUMBER),
    ];
    if cfg!(target_arch = "x86_64") {
        code.extend([jump(BPF_JGE, X32_BIT, 0, 1), answer(REFUSE)]);
    }
    code.extend([jump(BPF_JGT, LAST_KNOWN as u32, 0, 1), answer(UNKNOWN)]);
    let programs_refused = if programs { &[] } else { PROGRAMS };
    let client_refused = if client { &[] } else { CLIENT };
    for list in [
        NETWORK,
        client_refused,
        PROCESSES,
        FILES,
        KERNEL,
        OLD,
        programs_refused,
    ] {
        for number in list {
            code.extend([jump(BPF_JEQ, *number as u32, 0, 1), answer(REFUSE)]);
        }
    }
    // Its flags lie in memory, which a filter cannot read.
    let clone3 = 435;
    code.extend([jump(BPF_JEQ, clone3, 0, 1), answer(UNKNOWN)]);
    if client {
        allow_tcp(&mut code);
    }
    // Nobody but the node decides when the worker's parent-death signal goes.
    refuse_where(
        &mut code,
        libc::SYS_prctl,
        BPF_JEQ,
        libc::PR_SET_PDEATHSIG as u32,
    );
    let zero_or_own = [0, own_pid];
    if programs {
        let namespaces = libc::CLONE_NEWNS
            | libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET;
        refuse_where(&mut code, libc::SYS_clone, BPF_JSET, namespaces as u32);
    } else {
        allow_only(
            &mut code,
            libc::SYS_clone,
            BPF_JSET,
            &[libc::CLONE_THREAD as u32],
        );
        allow_only(&mut code, libc::SYS_kill, BPF_JEQ, &[own_pid]);
        allow_only(&mut code, libc::SYS_tgkill, BPF_JEQ, &[own_pid]);
        allow_only(&mut code, libc::SYS_prlimit64, BPF_JEQ, &zero_or_own);
    }
    code.push(answer(ALLOW));
    code
}

/// Refuses the call when its first argument compares so with `value`.
fn refuse_where(code: &mut Vec<sock_filter>, number: c_long, compare: u32, value: u32) {
    code.extend([
        jump(BPF_JEQ, number as u32, 0, 4),
        load(AT_ARGUMENTS),
        jump(compare, value, 0, 1),
        answer(REFUSE),
        answer(ALLOW),
    ]);
}

/// Sockets of TCP over IP alone: Landlock judges the ports of no other protocol. Nor does it judge whom a first packet goes to that is
/// sent without a connection.
fn allow_tcp(code: &mut Vec<sock_filter>) {
    let (stream, flags) = (libc::SOCK_STREAM, [libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK]);
    let [cloexec, nonblock] = flags;
    let types = [
        stream,
        stream | cloexec,
        stream | nonblock,
        stream | cloexec | nonblock,
    ];
    let wanted: [&[i32]; 3] = [
        &[libc::AF_INET, libc::AF_INET6],
        &types,
        &[0, libc::IPPROTO_TCP],
    ];
    let length: usize = wanted.iter().map(|values| values.len() + 2).sum();
    code.push(jump(BPF_JEQ, libc::SYS_socket as u32, 0, length as u8 + 1));
    for (argument, values) in (0..).zip(wanted) {
        code.push(load(AT_ARGUMENTS + 8 * argument));
        for (value, left) in values.iter().zip((1..=values.len() as u8).rev()) {
            code.push(jump(BPF_JEQ, *value as u32, left, 0));
        }
        code.push(answer(REFUSE));
    }
    code.push(answer(ALLOW));
    code.extend([
        jump(BPF_JEQ, libc::SYS_sendto as u32, 0, 4),
        load(AT_ARGUMENTS + 8 * 3),
        jump(BPF_JSET, libc::MSG_FASTOPEN as u32, 0, 1),
        answer(REFUSE),
        answer(ALLOW),
    ]);
}

/// Refuses the call unless its first argument compares so with one of `values`.
fn allow_only(code: &mut Vec<sock_filter>, number: c_long, compare: u32, values: &[u32]) {
    let count = values.len() as u8;
    code.push(jump(BPF_JEQ, number as u32, 0, count + 3));
    code.push(load(AT_ARGUMENTS));
    for (value, left) in values.iter().zip((1..=count).rev()) {
        code.push(jump(compare, *value, left, 0));
    }
    code.extend([answer(REFUSE), answer(ALLOW)]);
}

fn load(at: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, at, 0, 0)
}

/// Skips `yes` or `no` instructions.
fn jump(compare: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    instruction(BPF_JMP | compare | BPF_K, value, yes, no)
}

fn answer(verdict: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, verdict, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    /// The kernel's machine, as far as the filter uses it.
    fn verdict(code: &[sock_filter], architecture: u32, number: c_long, argument: u32) -> u32 {
        verdict_of(code, architecture, number, &[argument, 0, 0, 0])
    }

    fn verdict_of(code: &[sock_filter], architecture: u32, number: c_long, all: &[u32]) -> u32 {
        let (mut at, mut held) = (0, 0);
        loop {
            let step = code[at];
            at += 1;
            let code = u32::from(step.code);
            if code == BPF_RET | BPF_K {
                return step.k;
            }
            if code == BPF_LD | BPF_W | BPF_ABS {
                held = match step.k {
                    AT_NUMBER => number as u32,
                    AT_ARCHITECTURE => architecture,
                    at if at >= AT_ARGUMENTS => all[(at - AT_ARGUMENTS) as usize / 8],
                    other => panic!("reads at {other}"),
                };
                continue;
            }
            let holds = match code & !BPF_JMP {
                BPF_JEQ => held == step.k,
                BPF_JGE => held >= step.k,
                BPF_JGT => held > step.k,
                BPF_JSET => held & step.k != 0,
                other => panic!("compares by {other}"),
            };
            at += usize::from(if holds { step.jt } else { step.jf });
        }
    }

    /// The promise: every jump lands where it should, on both sides of every comparison.
    #[test]
    fn verdicts() {
        let ours = ARCHITECTURE;
        let strict = assemble(false, false, 77);
        let lenient = assemble(true, false, 77);
        for number in [NETWORK, CLIENT, PROCESSES, FILES, KERNEL, OLD].concat() {
            assert_eq!(verdict(&strict, ours, number, 0), REFUSE, "{number}");
            assert_eq!(verdict(&lenient, ours, number, 0), REFUSE, "{number}");
        }
        for number in PROGRAMS {
            assert_eq!(verdict(&strict, ours, *number, 0), REFUSE);
            assert_eq!(verdict(&lenient, ours, *number, 0), ALLOW);
        }
        for number in [
            libc::SYS_read,
            libc::SYS_openat,
            libc::SYS_futex,
            LAST_KNOWN,
        ] {
            assert_eq!(verdict(&strict, ours, number, 0), ALLOW, "{number}");
            assert_eq!(verdict(&strict, ours ^ 1, number, 0), REFUSE, "{number}");
            let x32 = number | c_long::from(X32_BIT);
            assert_ne!(verdict(&strict, ours, x32, 0), ALLOW, "{number}");
        }
        assert_eq!(verdict(&strict, ours, LAST_KNOWN + 1, 0), UNKNOWN);
        assert_eq!(verdict(&strict, ours, 435, 0), UNKNOWN);
        let thread = (libc::CLONE_THREAD | libc::CLONE_VM) as u32;
        let judged = [
            (libc::SYS_clone, thread, ALLOW, ALLOW),
            (libc::SYS_clone, libc::SIGCHLD as u32, REFUSE, ALLOW),
            (libc::SYS_clone, libc::CLONE_NEWUSER as u32, REFUSE, REFUSE),
            (libc::SYS_kill, 77, ALLOW, ALLOW),
            (libc::SYS_kill, 0, REFUSE, ALLOW),
            (libc::SYS_kill, 1, REFUSE, ALLOW),
            (libc::SYS_tgkill, 77, ALLOW, ALLOW),
            (libc::SYS_tgkill, 78, REFUSE, ALLOW),
            (libc::SYS_prlimit64, 0, ALLOW, ALLOW),
            (libc::SYS_prlimit64, 77, ALLOW, ALLOW),
            (libc::SYS_prlimit64, 1, REFUSE, ALLOW),
            (
                libc::SYS_prctl,
                libc::PR_SET_PDEATHSIG as u32,
                REFUSE,
                REFUSE,
            ),
            (libc::SYS_prctl, libc::PR_SET_NAME as u32, ALLOW, ALLOW),
        ];
        for (number, argument, in_strict, in_lenient) in judged {
            let found = (
                verdict(&strict, ours, number, argument),
                verdict(&lenient, ours, number, argument),
            );
            assert_eq!(found, (in_strict, in_lenient), "{number} {argument}");
        }
    }

    /// The promise: a client has TCP over IP and nothing else, by no side way; all other rules stand as they were.
    #[test]
    fn a_client_s_verdicts() {
        let client = assemble(false, true, 77);
        let strict = assemble(false, false, 77);
        let ours = ARCHITECTURE;
        for number in [NETWORK, PROCESSES, FILES, KERNEL, OLD, PROGRAMS].concat() {
            assert_eq!(verdict(&client, ours, number, 0), REFUSE, "{number}");
        }
        let judged = [
            libc::SYS_prctl,
            libc::SYS_clone,
            libc::SYS_kill,
            libc::SYS_read,
        ];
        for (number, argument) in judged.into_iter().flat_map(|n| [(n, 1), (n, 77)]) {
            assert_eq!(
                verdict(&client, ours, number, argument),
                verdict(&strict, ours, number, argument)
            );
        }
        assert_eq!(verdict(&client, ours, libc::SYS_connect, 3), ALLOW);
        let socket = |family, kind, protocol| {
            let all = [family, kind, protocol, 0].map(|word: i32| word as u32);
            verdict_of(&client, ours, libc::SYS_socket, &all)
        };
        let (tcp, both) = (libc::SOCK_STREAM, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        for family in [libc::AF_INET, libc::AF_INET6] {
            for kind in [tcp, tcp | both, tcp | libc::SOCK_CLOEXEC] {
                assert_eq!(socket(family, kind, 0), ALLOW);
                assert_eq!(socket(family, kind, libc::IPPROTO_TCP), ALLOW);
            }
            assert_eq!(socket(family, libc::SOCK_DGRAM | both, 0), REFUSE);
            assert_eq!(socket(family, libc::SOCK_RAW, 0), REFUSE);
            assert_eq!(socket(family, tcp, 262), REFUSE, "MPTCP");
        }
        for family in [libc::AF_UNIX, libc::AF_NETLINK, libc::AF_VSOCK] {
            assert_eq!(socket(family, tcp, 0), REFUSE);
        }
        let send =
            |flags: i32| verdict_of(&client, ours, libc::SYS_sendto, &[3, 0, 0, flags as u32]);
        assert_eq!(send(libc::MSG_NOSIGNAL), ALLOW);
        assert_eq!(send(libc::MSG_NOSIGNAL | libc::MSG_FASTOPEN), REFUSE);
    }
}
