//! The one table of the codes that a command can end with: its exit code, and the next step where the error itself names none.
//! Both sides of local control read it. It knows codes only; what went wrong is said by whoever refuses.
//!
//! | exit | when |
//! |---|---|
//! | 0 | done |
//! | 1 | the task failed, was refused or was canceled, or anything else failed |
//! | 2 | usage, bad input, an unknown id; also a file, home, key or address that cannot be used, and a second `legion up` |
//! | 3 | no provider: every peer that could have taken the task refused it, or nobody had taken it by its deadline |
//! | 4 | the deadline passed while the task was in somebody's hands |
//! | 5 | the node is not running |
//! | 130 | detached: the command stopped waiting, the task goes on |
//!
//! A task that ended carries the code of its end; that is 3 or 4 for those two and 1 for every other, whatever this table
//! says of a command's own refusal with the same code.

/// The exit code of what no row names: something failed.
pub const FAILED: u8 = 1;
const FAULTY: u8 = 2;
const NO_PROVIDER: u8 = 3;
const LATE: u8 = 4;
const NOT_RUNNING: u8 = 5;
const DETACHED: u8 = 130;

const SCHEMA: &str = "`legion skills --json` shows what the input must be";
const DEFECT: &str = "this is a defect: report it with the output of `legion logs`";
const FORGED: &str = "the export is damaged or forged: ask for it again";
const PATH: &str =
    "check that the path exists, who owns it, its mode, and the space left on its disk";
const RANDOM: &str = "check the system's random source, and try again";
const PASSPHRASE: &str =
    "pass --no-passphrase, --passphrase-file F or --passphrase-fd N, or run it on a terminal";
const MODELS: &str = "`legion models` lists this machine's, `legion models add DIR` adds one";
const CHAIN: &str = "ask whoever is to do the last part directly, with `--peer`";
const WHY: &str = "`legion why ID` says why, per peer";

const BACKEND: &str = "ask another peer, or this one later: its owner sees the server's side; `legion peers` lists them";

const COPY: &str = "copy it again, from its first character to its last";
const ASK_AGAIN: &str = "ask for a new one, by a way that you trust";
const SAME_VERSION: &str = "use the same version of legion on both machines";
const OTHER_KIND: &str = "`legion pool join` takes invites, `legion peers trust` takes contacts";

/// Code, exit code, next step.
type Row = (&'static str, u8, &'static str);

/// Usage and input.
const INPUT: &[Row] = &[
    ("usage", FAULTY, "try `legion --help`"),
    (
        "limit_unused",
        FAULTY,
        "leave --limit away, or pass --tier trusted",
    ),
    ("params_invalid", FAULTY, "correct the request"),
    (
        "request_invalid",
        FAULTY,
        "send one JSON-RPC 2.0 request per line",
    ),
    (
        "method_unknown",
        FAILED,
        "use the `legion` of the same version as the node",
    ),
    (
        "input_unreadable",
        FAULTY,
        "check the path; `-` reads stdin",
    ),
    ("input_invalid", FAULTY, SCHEMA),
    ("input_not_object", FAULTY, SCHEMA),
    ("schema_unknown", FAULTY, "use --input FILE, or `k:=json`"),
    (
        "payload_too_large",
        FAULTY,
        "make the input smaller, or cut the task in two",
    ),
    (
        "skill_unknown",
        FAULTY,
        "`legion skills` lists this machine's, `legion peers` those of others: name one with --peer",
    ),
    (
        "pool_missing",
        FAULTY,
        "name a peer with --peer, or a pool in config/legion.toml",
    ),
    (
        "pool_unknown",
        FAULTY,
        "`legion pool list` shows those that are joined; `legion pool join` takes an invite, `pools` in config/legion.toml names open ones",
    ),
    (
        "npub_invalid",
        FAULTY,
        "write it as npub1… or as 64 hex digits; `legion id` shows a node's own",
    ),
    (
        "peer_unknown",
        FAULTY,
        "`legion peers` lists those that are known",
    ),
    (
        "peer_is_self",
        FAULTY,
        "name another node: this one trusts itself",
    ),
    (
        "peer_busy",
        FAILED,
        "try again when `legion ledger --peer NPUB` shows nothing pending",
    ),
    (
        "key_invalid",
        FAULTY,
        "pass --key with 1 to 128 printable characters, or leave it out",
    ),
    (
        "key_reused",
        FAULTY,
        "choose another --key, or ask with the input it was first used with",
    ),
    (
        "deadline_range",
        FAULTY,
        "pass --deadline with at most 366 days, and at least 4 seconds through a pool, 3 for one peer",
    ),
    ("deadline_too_short", FAULTY, "pass a longer --deadline"),
    ("amount_range", FAULTY, "name a smaller amount"),
    (
        "cores_invalid",
        FAULTY,
        "`legion pause` stops foreign work altogether; --cores takes 1 or more",
    ),
    ("task_unknown", FAULTY, "`legion tasks` lists them"),
    (
        "task_not_asked",
        FAULTY,
        "`legion task ID` shows it; `why` and `cancel` are the asking node's",
    ),
    ("task_final", FAILED, "`legion task ID` shows how it ended"),
    (
        "not_paused",
        FAILED,
        "`legion status` shows what foreign work may do",
    ),
    ("no_log", FAULTY, "`legion up` writes one"),
    ("not_built", FAILED, "use a build that has it"),
    ("keep_not_empty", FAULTY, "pass --keep with a new directory"),
];

/// Pools, invites and contacts.
const POOLS: &[Row] = &[
    ("invite_too_long", FAULTY, COPY),
    ("invite_malformed", FAULTY, COPY),
    ("invite_hrp", FAULTY, COPY),
    ("invite_checksum", FAULTY, COPY),
    ("invite_version", FAULTY, SAME_VERSION),
    ("invite_kind", FAULTY, OTHER_KIND),
    ("invite_signature", FAULTY, ASK_AGAIN),
    ("invite_expired", FAULTY, ASK_AGAIN),
    ("invite_superseded", FAULTY, ASK_AGAIN),
    ("contact_too_long", FAULTY, COPY),
    ("contact_malformed", FAULTY, COPY),
    ("contact_hrp", FAULTY, COPY),
    ("contact_checksum", FAULTY, COPY),
    ("contact_version", FAULTY, SAME_VERSION),
    ("contact_kind", FAULTY, OTHER_KIND),
    ("contact_signature", FAULTY, ASK_AGAIN),
    ("contact_expired", FAULTY, ASK_AGAIN),
    (
        "pool_name_taken",
        FAULTY,
        "leave the pool of that name first, or have the other created under another name",
    ),
    ("pool_name_invalid", FAULTY, "choose another name"),
    (
        "pool_open",
        FAULTY,
        "open pools are listed in `pools` of config/legion.toml; they have neither invites nor secrets",
    ),
    (
        "pool_epoch_taken",
        FAULTY,
        "let one member rotate it again and invite the others",
    ),
    ("pools_too_many", FAULTY, "leave one first"),
    (
        "pool_file_invalid",
        FAULTY,
        "restore it from a backup, or move it away and join the pools again",
    ),
    (
        "time_range",
        FAULTY,
        "pass a time within these bounds, as 12h or 7d",
    ),
];

/// Homes, settings, keys and other files.
const FILES: &[Row] = &[
    (
        "store_foreign",
        FAULTY,
        "put the key file and the store of one backup together",
    ),
    ("model_invalid", FAULTY, MODELS),
    ("model_missing", FAULTY, MODELS),
    ("model_changed", FAULTY, MODELS),
    ("model_exists", FAULTY, MODELS),
    ("model_name", FAULTY, MODELS),
    ("model_register", FAULTY, MODELS),
    ("model_io", FAULTY, PATH),
    ("backend_unreachable", FAILED, BACKEND),
    ("backend_refused", FAILED, BACKEND),
    ("backend_stalled", FAILED, BACKEND),
    (
        "backend_garbage",
        FAILED,
        "the skill's server does not speak OpenAI's chat completions: ask another peer",
    ),
    (
        "backend_endless",
        FAILED,
        "ask for less with max_tokens, or ask another peer",
    ),
    ("io", FAULTY, PATH),
    (
        "system_refused",
        FAILED,
        "check the limits of processes and open files",
    ),
    ("home_unknown", FAULTY, "pass --home DIR or set LEGION_HOME"),
    ("home_unusable", FAULTY, PATH),
    ("home_in_git", FAULTY, "pass a --home outside the work tree"),
    (
        "config_invalid",
        FAULTY,
        "correct that line; config/legion.toml in the repository shows every key",
    ),
    ("config_unreadable", FAULTY, PATH),
    (
        "config_exists",
        FAULTY,
        "name the relays there, and leave --relay out",
    ),
    (
        "relay_list_missing",
        FAULTY,
        "`legion init` writes one; `relays` may also hold URLs",
    ),
    ("relay_invalid", FAULTY, "pass --relay wss://HOST"),
    (
        "already_initialized",
        FAULTY,
        "`legion id` shows it; use another --home for a new one",
    ),
    ("already_running", FAULTY, "`legion status` shows it"),
    ("mnemonic_needs_place", FAULTY, "pass --mnemonic-out F"),
    (
        "mnemonic_out_exists",
        FAULTY,
        "pass --mnemonic-out with a new file name",
    ),
    ("mnemonic_unreadable", FAULTY, PATH),
    (
        "mnemonic_invalid",
        FAULTY,
        "check the spelling and the order of the words",
    ),
    ("passphrase_mismatch", FAULTY, "try again"),
    ("passphrase_required", FAULTY, PASSPHRASE),
    ("passphrase_needed", FAULTY, PASSPHRASE),
    ("passphrase_empty", FAULTY, PASSPHRASE),
    (
        "passphrase_unreadable",
        FAULTY,
        "check the path or the descriptor",
    ),
    (
        "passphrase_wrong",
        FAULTY,
        "try again, or restore the file from a backup",
    ),
    (
        "lct_invalid",
        FAULTY,
        "correct [owner] in config/legion.toml",
    ),
    ("key_missing", FAULTY, "create one with `legion init`"),
    (
        "key_exists",
        FAULTY,
        "move it away first if you want a new one",
    ),
    (
        "key_permissions",
        FAULTY,
        "run `chmod go-rwx` on it, and check who could have read it",
    ),
    (
        "key_file_invalid",
        FAULTY,
        "restore it from a backup, or with `legion init --mnemonic-file`",
    ),
    ("key_io", FAULTY, PATH),
    ("derivation_failed", FAILED, DEFECT),
    ("entropy_unavailable", FAILED, RANDOM),
    ("rumor_too_large", FAILED, DEFECT),
    ("expiration_invalid", FAILED, DEFECT),
    ("pow_too_costly", FAILED, "choose another pool or relay"),
    ("sealing_failed", FAILED, DEFECT),
    ("undecryptable", FAILED, DEFECT),
    (
        "store_newer",
        FAULTY,
        "install the newer legion, or start with another --home",
    ),
    (
        "store_invalid",
        FAULTY,
        "restore a backup, or move the file away to start empty",
    ),
    (
        "store_locked",
        FAULTY,
        "stop the other `legion up` of this home first",
    ),
    ("store_target_exists", FAULTY, "choose another path"),
    (
        "store_target_unusable",
        FAULTY,
        "name a new file in a folder that exists, is yours, and has space left on its disk",
    ),
    (
        "store_unavailable",
        FAILED,
        "free disk space or check the disk, then start the node again",
    ),
    ("store_unwritable", FAILED, DEFECT),
    ("store_dropped", FAILED, DEFECT),
];

/// Backups, restorations and copies of a home.
const BACKUPS: &[Row] = &[
    (
        "backup_invalid",
        FAULTY,
        "name a file that `legion backup` wrote",
    ),
    ("backup_foreign", FAULTY, "use another --home"),
    (
        "backup_unrestored",
        FAULTY,
        "move it out of the home and run `legion restore` on it",
    ),
    (
        "restore_unfinished",
        FAULTY,
        "run `legion restore FILE` again",
    ),
    (
        "epoch_behind",
        FAULTY,
        "make the key file of the epoch named with `legion init --mnemonic-file F --epoch N`: here where the store names it, in a new home where a peer does, and restore the newest backup there",
    ),
    (
        "backup_keyless",
        FAULTY,
        "make the keys first with `legion init --mnemonic-file F`, then restore",
    ),
    (
        "store_exists",
        FAULTY,
        "restore into a new --home, or move store.redb away",
    ),
    (
        "recovering",
        FAILED,
        "wait until the peers have answered, or `legion restore --accept-losses`",
    ),
    (
        "peer_frozen",
        FAILED,
        "wait until it answers, ask another peer, or `legion restore --accept-losses --peer NPUB`",
    ),
    (
        "not_recovering",
        FAILED,
        "`legion status` shows what the node waits for",
    ),
    ("lost_in_restore", FAILED, "ask again"),
    (
        "identity_in_use_elsewhere",
        FAILED,
        "stop the other node for good, then `legion up --sole` here; an old copy of a restored home is not to be used any more",
    ),
];

/// Processes, addresses and the network.
const RUNNING: &[Row] = &[
    ("node_not_running", NOT_RUNNING, "start it with `legion up`"),
    (
        "node_lost",
        NOT_RUNNING,
        "`legion up` starts it again; what it had made durable is still there",
    ),
    (
        "too_many_waits",
        FAULTY,
        "the task goes on; `legion task ID` shows it, and `legion wait ID` waits once others have ended",
    ),
    (
        "node_stopping",
        NOT_RUNNING,
        "start it again with `legion up`",
    ),
    (
        "node_foreign",
        FAULTY,
        "run this command as the user who runs the node",
    ),
    ("node_error", FAILED, "`legion logs` may say more"),
    ("internal", FAILED, DEFECT),
    (
        "relay_listen_failed",
        FAULTY,
        "choose a free address with `--listen`",
    ),
    (
        "relay_data_failed",
        FAULTY,
        "make it readable and writable, or start without one",
    ),
    (
        "relay_data_in_use",
        FAULTY,
        "stop the other relay or choose another file",
    ),
    (
        "carrier_bad_url",
        FAULTY,
        "write a relay as wss://host or ws://host:port",
    ),
    (
        "carrier_too_many_relays",
        FAULTY,
        "name fewer relays in config/legion.toml",
    ),
    ("carrier_too_many_inboxes", FAILED, DEFECT),
    ("carrier_event_too_large", FAILED, DEFECT),
    ("carrier_busy", FAILED, "try again"),
    ("carrier_unknown_relay", FAILED, DEFECT),
    ("carrier_ended", FAILED, "start the node again"),
    ("binding_malformed", FAILED, DEFECT),
    ("binding_author", FAILED, DEFECT),
    ("binding_expired", FAILED, "check the machine's clock"),
    ("binding_signature", FAILED, DEFECT),
    ("binding_epoch", FAILED, DEFECT),
    ("binding_conflict", FAILED, DEFECT),
    ("rotation_unsigned", FAILED, DEFECT),
    (
        "demo_failed",
        FAILED,
        "pass --keep DIR and read the logs in it",
    ),
    (
        "demo_slow",
        FAILED,
        "try again when the machine has less to do",
    ),
    ("demo_too_fast", FAILED, "try again"),
];

/// The end of a task, of a wait, and of a check.
const ENDS: &[Row] = &[
    ("delegation_cycle", FAILED, CHAIN),
    ("delegation_too_deep", FAILED, CHAIN),
    (
        "delegation_limit",
        FAILED,
        "its owner sets limits.delegation_calls: cut the task in two",
    ),
    (
        "delegation_invalid",
        FAILED,
        "its skill is faulty: tell its owner, or ask somebody else",
    ),
    ("delegation_lost", FAILED, "run the command again"),
    (
        "hop_failed",
        FAILED,
        "the text says what the one who was asked in turn had to say",
    ),
    ("no_provider", NO_PROVIDER, WHY),
    ("deadline_passed", LATE, WHY),
    ("failed", FAILED, WHY),
    ("detached", DETACHED, "`legion wait ID` takes it up again"),
    ("interrupted", DETACHED, "run the command again"),
    ("proof_missing", FAULTY, "`legion task ID` shows its state"),
    (
        "proof_malformed",
        FAULTY,
        "pass what `legion proof export ID --json` printed",
    ),
    (
        "entries_malformed",
        FAULTY,
        "pass what `legion proof export ID --json` printed",
    ),
    (
        "output_invalid",
        FAULTY,
        "pass what `legion proof export ID --json` printed",
    ),
    ("proof_signature", FAILED, FORGED),
    ("output_mismatch", FAILED, FORGED),
    ("units_mismatch", FAILED, FORGED),
    ("root_mismatch", FAILED, FORGED),
    ("entry_signature", FAILED, FORGED),
];

fn rows() -> impl Iterator<Item = &'static Row> {
    [INPUT, POOLS, FILES, BACKUPS, RUNNING, ENDS]
        .into_iter()
        .flatten()
}

/// Every code with a row, with its exit code and the next step.
pub fn known() -> impl Iterator<Item = (&'static str, u8, &'static str)> {
    rows().copied()
}

/// The exit code of a command that ends with `code`: [`FAILED`] for one without a row.
#[must_use]
pub fn exit_of(code: &str) -> u8 {
    rows()
        .find(|(known, ..)| *known == code)
        .map_or(FAILED, |(_, exit, _)| *exit)
}

/// The next step after `code`. Never empty.
#[must_use]
pub fn hint_of(code: &str) -> &'static str {
    rows()
        .find(|(known, ..)| *known == code)
        .map_or("`legion logs` may say more", |(.., hint)| hint)
}

/// The exit code of a task that ended without a result, by the code of its end.
#[must_use]
pub fn exit_of_end(code: &str) -> u8 {
    match exit_of(code) {
        exit @ (NO_PROVIDER | LATE) => exit,
        _ => FAILED,
    }
}

/// An error's text as message and next step. The rooms below end their texts with the step, after the last `; `; a text
/// without one gets the step of its code.
#[must_use]
pub fn told<'a>(code: &str, text: &'a str) -> (&'a str, &'a str) {
    match text.rsplit_once("; ") {
        Some((message, hint)) if !message.is_empty() && !hint.is_empty() => (message, hint),
        _ => (text, hint_of(code)),
    }
}

#[cfg(test)]
mod tests;
