//! The layers as Linux has them. Each is tried on its own: one that the system refuses is named and the others still hold.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use super::{Sandbox, SandboxReport, filter};

/// The rights that this program knows of; a kernel that knows fewer is asked for those.
const KNOWN: ABI = ABI::V9;
/// Largest file in the worker's folder.
const FILE_BYTES: u64 = 1 << 30;
/// Open files: pipes, folder, the files of a model.
const OPEN_FILES: u64 = 256;
/// Stacks and heaps of one thread, before any work.
const THREAD_BYTES: u64 = 8 << 20;
/// What any worker takes before it works.
const START_BYTES: u64 = 256 << 20;
/// What the C library and thread pools look at: this process itself, and how many cores there are.
const SYSTEM_READ: [&str; 4] = [
    "/proc/self",
    "/proc/cpuinfo",
    "/sys/devices/system/cpu",
    "/dev/urandom",
];

pub(super) fn enter(sandbox: &Sandbox, threads: u32) -> SandboxReport {
    let lacks = |layer: &str| sandbox.lacks.iter().any(|name| name == layer);
    let mut missing = Vec::new();
    // Landlock and capabilities are a thread's own: one that runs already would keep everything.
    if std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count) != 1 {
        missing.push("single_thread");
    }
    let mut layer = |name: &'static str, enter: &dyn Fn() -> bool| {
        if lacks(name) || !enter() {
            missing.push(name);
        }
    };
    layer("rlimits", &|| limit(sandbox, threads).is_ok());
    layer("no_new_privs", &|| set_no_new_privs(true).is_ok());
    layer("capabilities", &|| drop_capabilities().is_ok());
    if lacks("landlock") {
        missing.push("landlock");
    } else {
        missing.extend(confine_files(sandbox));
    }
    // Last, because it forbids some of what the others do.
    if lacks("seccomp") || filter::enter(!sandbox.exec.is_empty(), sandbox.tcp.is_some()).is_err() {
        missing.push("seccomp");
    }
    if sandbox.tcp.is_some() {
        missing.push("network");
    }
    SandboxReport::of(missing)
}

fn limit(sandbox: &Sandbox, threads: u32) -> rustix::io::Result<()> {
    let at_most = |resource, most: u64| {
        let set = rustix::process::getrlimit(resource);
        let most = set.maximum.map_or(most, |already| already.min(most));
        let both = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, both)
    };
    // A core dump would write the owner's input to a disk.
    at_most(Resource::Core, 0)?;
    at_most(Resource::Fsize, FILE_BYTES)?;
    at_most(Resource::Nofile, OPEN_FILES)?;
    // A driver maps more than it uses.
    if sandbox.memory_bytes > 0 && sandbox.devices.is_empty() {
        let stacks = THREAD_BYTES.saturating_mul(u64::from(threads));
        let work = sandbox.memory_bytes.saturating_mul(2);
        at_most(
            Resource::Data,
            work.saturating_add(stacks).saturating_add(START_BYTES),
        )?;
    }
    Ok(())
}

fn drop_capabilities() -> rustix::io::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)
}

/// Which parts of Landlock are not in force.
fn confine_files(sandbox: &Sandbox) -> Vec<&'static str> {
    let Ok((status, landlock)) = restrict(sandbox) else {
        return vec!["landlock"];
    };
    let LandlockStatus::Available { effective_abi, .. } = landlock else {
        return vec!["landlock"];
    };
    if status == RulesetStatus::NotEnforced {
        return vec!["landlock"];
    }
    let mut missing = Vec::new();
    if effective_abi < ABI::V3 {
        missing.push("landlock_truncate");
    }
    // Where programs may be started, the filter cannot know whom they may signal.
    if effective_abi < ABI::V6 && !sandbox.exec.is_empty() {
        missing.push("landlock_scope");
    }
    if effective_abi < ABI::V4 && sandbox.tcp.is_some() {
        missing.push("landlock_net");
    }
    missing
}

fn restrict(sandbox: &Sandbox) -> Result<(RulesetStatus, LandlockStatus), RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_write(KNOWN)
        & !(AccessFs::MakeChar
            | AccessFs::MakeBlock
            | AccessFs::MakeSock
            | AccessFs::IoctlDev
            | AccessFs::ResolveUnix);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    // A kernel before 6.7 does not know ports: there any can be reached.
    let port = sandbox.tcp.into_iter();
    let port = port.map(|port| Ok::<_, RulesetError>(NetPort::new(port, AccessNet::ConnectTcp)));
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(rules(["."], read | write))?
        .add_rules(rules(SYSTEM_READ, read))?
        .add_rules(rules(
            ["/dev/null"],
            AccessFs::ReadFile | AccessFs::WriteFile,
        ))?
        .add_rules(rules(&sandbox.read, read))?
        .add_rules(rules(&sandbox.exec, read | AccessFs::Execute))?
        .add_rules(rules(&sandbox.devices, device))?
        .add_rules(port)?
        .restrict_self()?;
    Ok((status.ruleset, status.landlock))
}

/// A path that is not there gets no rule: it stays out of reach.
fn rules(
    paths: impl IntoIterator<Item = impl AsRef<Path>>,
    access: impl Into<BitFlags<AccessFs>>,
) -> impl Iterator<Item = Result<PathBeneath<PathFd>, RulesetError>> {
    path_beneath_rules(paths, access)
}
