//! The house keeps its own rules: who may know whom, how long a file may be, what a file says about itself, and that settings,
//! templates and fixtures belong to each other. Paths are read with `syn` and from tokens, so that a comment proves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use legiond::config::{Config, TEMPLATE};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::Visit;

/// From the top down: a room may name only rooms further down.
const ROOMS: [&str; 13] = [
    "main", "lib", "cli", "gateway", "node", "carrier", "relay", "labor", "store", "domain",
    "wire", "identity", "config",
];

/// These lie side by side and do not know each other.
const STRANGERS: [&str; 4] = ["carrier", "relay", "labor", "store"];

/// Crates that belong to some rooms only.
const CRATES: [(&str, &[&str]); 11] = [
    ("nostr", &["wire", "identity", "carrier", "relay", "node"]),
    ("nostr_sdk", &["carrier", "relay"]),
    ("nostr_relay_builder", &["relay"]),
    ("nostr_database", &["relay"]),
    ("redb", &["store"]),
    ("burn", &["labor"]),
    ("rayon", &["labor"]),
    ("landlock", &["labor"]),
    ("safetensors", &["labor"]),
    ("tokenizers", &["labor"]),
    ("hyper", &["relay", "labor"]),
];

/// Names that would let time, chance, order or rounding into a decision.
const NOT_IN_DOMAIN: [&str; 16] = [
    "tokio",
    "redb",
    "burn",
    "nostr",
    "getrandom",
    "rand",
    "HashMap",
    "HashSet",
    "SystemTime",
    "Instant",
    "OsRng",
    "thread_rng",
    "RandomState",
    "f32",
    "f64",
    "reqwest",
];

const MAX_LINES: usize = 600;
const MAX_TEST_LINES: usize = 900;
const MAX_MAIN_LINES: usize = 60;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir`, relative to the repository, without build outputs and installed packages.
fn files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git", "node_modules"].contains(&name.as_str()) {
                    open.push(path);
                }
            } else {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    let rust = |path: &PathBuf| path.extension().is_some_and(|ext| ext == "rs");
    ["src", "tests", "benches"]
        .iter()
        .flat_map(|dir| files(dir))
        .filter(rust)
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn is_test_file(path: &Path) -> bool {
    !path.starts_with("src")
        || path.ends_with("tests.rs")
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// The room a file of `src/` belongs to.
fn room(path: &Path) -> String {
    let part = path
        .components()
        .nth(1)
        .unwrap()
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    part.trim_end_matches(".rs").to_owned()
}

/// What one file names, outside `#[cfg(test)]`: rooms (`crate::room`), first segments of paths, and every identifier.
#[derive(Default)]
struct Names {
    rooms: BTreeSet<String>,
    heads: BTreeSet<String>,
    idents: BTreeSet<String>,
    unwraps: Vec<usize>,
}

fn is_test_only(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| {
        attr.path().is_ident("test")
            || (attr.path().is_ident("cfg")
                && matches!(&attr.meta, syn::Meta::List(list) if list.tokens.to_string().starts_with("test")))
    })
}

impl Names {
    fn of(text: &str) -> Self {
        let file = syn::parse_file(text).unwrap();
        let mut names = Self::default();
        names.visit_file(&file);
        names
    }

    /// `crate::room` and the heads of paths in tokens: `use` trees, expressions, types and macros alike.
    fn tokens(&mut self, tokens: TokenStream) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        let ident = |index: usize| match trees.get(index) {
            Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
            _ => None,
        };
        let colons = |index: usize| {
            let colon = |index: usize| matches!(trees.get(index), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
            colon(index) && colon(index + 1)
        };
        let dot = |index: usize| matches!(trees.get(index), Some(TokenTree::Punct(punct)) if punct.as_char() == '.');
        for (index, tree) in trees.iter().enumerate() {
            match tree {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(name) => {
                    let name = name.to_string();
                    let is_head = index < 2 || !colons(index - 2);
                    if is_head && colons(index + 1) {
                        self.heads.insert(name.clone());
                    }
                    if name == "crate" && colons(index + 1) {
                        self.rooms.extend(ident(index + 3));
                        if let Some(TokenTree::Group(group)) = trees.get(index + 3) {
                            self.group_of_rooms(&group.stream());
                        }
                    }
                    if matches!(name.as_str(), "unwrap" | "expect") && index > 0 && dot(index - 1) {
                        self.unwraps.push(tree.span().start().line);
                    }
                    self.idents.insert(name);
                }
                _ => {}
            }
        }
    }

    /// `use crate::{a::X, b};`: each name after the brace or a comma.
    fn group_of_rooms(&mut self, tokens: &TokenStream) {
        let mut first = true;
        for tree in tokens.clone() {
            match tree {
                TokenTree::Ident(name) if first => {
                    self.rooms.insert(name.to_string());
                    first = false;
                }
                TokenTree::Punct(punct) if punct.as_char() == ',' => first = true,
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attrs: &[syn::Attribute] = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Const(item) => &item.attrs,
            _ => &[],
        };
        if is_test_only(attrs) {
            return;
        }
        match item {
            // Modules are entered item by item, so that a test module inside one is left out.
            syn::Item::Mod(module) => syn::visit::visit_item_mod(self, module),
            other => self.tokens(tokens_of(other)),
        }
    }
}

/// The tokens of a parsed item: its source text, lexed again.
fn tokens_of(item: &syn::Item) -> TokenStream {
    // A span remembers its text while the file's tokens live on this thread.
    let text = item.span().source_text().expect("span-locations is on");
    text.parse().expect("what parsed once parses again")
}

#[test]
fn rooms_know_only_rooms_below_them() {
    let rank = |room: &str| ROOMS.iter().position(|known| *known == room);
    let mut wrong = Vec::new();
    for path in rust_files()
        .iter()
        .filter(|path| path.starts_with("src") && !is_test_file(path))
    {
        let here = room(path);
        let own = rank(&here).unwrap_or_else(|| panic!("{} belongs to no room", path.display()));
        for named in Names::of(&read(path)).rooms {
            let Some(other) = rank(&named) else { continue };
            let strangers =
                STRANGERS.contains(&here.as_str()) && STRANGERS.contains(&named.as_str());
            if named != here && (other <= own || strangers) {
                wrong.push(format!("{} names crate::{named}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn crates_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for path in rust_files()
        .iter()
        .filter(|path| path.starts_with("src") && !is_test_file(path))
    {
        let names = Names::of(&read(path));
        for (name, rooms) in CRATES {
            if names.heads.contains(name) && !rooms.contains(&room(path).as_str()) {
                wrong.push(format!("{} names {name}", path.display()));
            }
        }
        if room(path) == "domain" {
            let banned = NOT_IN_DOMAIN
                .iter()
                .filter(|name| names.idents.contains(**name));
            wrong.extend(banned.map(|name| format!("{} names {name}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_reader_of_paths_sees_what_it_must() {
    let names = Names::of(
        "use crate::{store::Tx, wire as w};\n/// crate::cli\nfn a() { x!(crate::labor::go()); redb::open().unwrap(); }\n\
         fn b<T: nostr::Tag>() {}\n#[cfg(test)] mod tests { use crate::node; fn c() { d().unwrap(); } }\nmod m { fn e() { crate::relay::f(); } }",
    );
    assert_eq!(
        names.rooms.iter().collect::<Vec<_>>(),
        ["labor", "relay", "store", "wire"]
    );
    assert!(names.heads.contains("redb") && names.heads.contains("nostr"));
    assert_eq!(names.unwraps.len(), 1);
}

#[test]
fn every_file_says_what_it_is_for_and_is_short_enough_to_read() {
    let mut wrong = Vec::new();
    for path in rust_files() {
        let text = read(&path);
        let lines = text.lines().count();
        let most = if path == Path::new("src/main.rs") {
            MAX_MAIN_LINES
        } else if is_test_file(&path) {
            MAX_TEST_LINES
        } else {
            MAX_LINES
        };
        if lines > most {
            wrong.push(format!(
                "{}: {lines} lines, {most} are allowed",
                path.display()
            ));
        }
        if !text.starts_with("//! ") {
            wrong.push(format!(
                "{}: does not open with a `//!` paragraph",
                path.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_outside_tests_unwraps() {
    let mut wrong = Vec::new();
    for path in rust_files()
        .iter()
        .filter(|path| path.starts_with("src") && !is_test_file(path))
    {
        let lines = Names::of(&read(path)).unwraps;
        wrong.extend(lines.iter().map(|_| path.display().to_string()));
    }
    assert!(wrong.is_empty(), "`.unwrap()` or `.expect(` in {wrong:#?}");
}

#[test]
fn the_template_is_the_default() {
    let path = Path::new("config/legion.toml");
    assert_eq!(Config::parse(TEMPLATE, path).unwrap(), Config::default());
    // A template without a key has its default too, so each key must be written out.
    let written: toml::Table = TEMPLATE.parse().unwrap();
    let written = serde_json::to_value(written).unwrap();
    let mut missing = Vec::new();
    absent(
        &serde_json::to_value(Config::default()).unwrap(),
        &written,
        "",
        &mut missing,
    );
    missing.retain(|key| key != ".permissions.rule");
    assert!(
        missing.is_empty(),
        "{} does not show {missing:?}",
        path.display()
    );
    assert!(
        TEMPLATE.contains("[[permissions.rule]]"),
        "a rule is shown as a comment"
    );
}

fn absent(
    value: &serde_json::Value,
    written: &serde_json::Value,
    at: &str,
    missing: &mut Vec<String>,
) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let key = format!("{at}.{name}");
        match written.get(name) {
            Some(written) => absent(value, written, &key, missing),
            None => missing.push(key),
        }
    }
}

#[test]
fn every_fixture_is_used() {
    let sources: String = rust_files().iter().map(|path| read(path)).collect();
    let orphan = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Shapes of the command line are named by what they show: `shape("id", ..)`.
        let by_stem = ["shape", "fixture"]
            .iter()
            .any(|call| sources.contains(&format!("{call}(\"{stem}\"")));
        !(sources.contains(&name) || path.starts_with("fixtures/cli") && by_stem)
    };
    let orphans: Vec<PathBuf> = files("fixtures").into_iter().filter(orphan).collect();
    assert!(orphans.is_empty(), "no test names {orphans:?}");
}

#[test]
fn no_file_names_a_package_registry_or_a_machine() {
    let banned = [
        concat!("crates", ".io"),
        concat!("registry.", "npmjs"),
        concat!("/root", "/"),
        concat!("/home", "/runner"),
    ];
    let mut wrong = Vec::new();
    for dir in [
        "src", "tests", "benches", "config", "relays", "keys", "fixtures", ".ci",
    ] {
        for path in files(dir) {
            let Ok(text) = fs::read_to_string(root().join(&path)) else {
                continue;
            };
            let named = banned.iter().filter(|name| text.contains(**name));
            wrong.extend(named.map(|name| format!("{} names {name}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every crate with the features that this kind of build gives it.
fn crates_built(edges: &str) -> BTreeSet<String> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--prefix", "none"])
        .args(["--format", "{p} [{f}]", "--edges", edges])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = text.lines().map(|line| line.trim_end_matches(" (*)"));
    lines.map(str::to_owned).collect()
}

/// README promises that the second of its two commands does not build the world again.
#[test]
fn what_cargo_run_has_built_serves_cargo_test() {
    let (run, test) = (
        crates_built("normal,build"),
        crates_built("normal,build,dev"),
    );
    let again: Vec<_> = run.difference(&test).collect();
    assert!(
        again.is_empty(),
        "built twice, for other features: {again:#?}"
    );
}
