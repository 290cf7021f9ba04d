//! What a person types by mistake is refused by name, what the node would pass over in silence is said, and answers are readable.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Place, code, one_object, text, with_node};

#[test]
fn a_key_that_stands_twice_in_an_input_is_refused_by_name() {
    let place = Place::new();
    place.init();
    let twice = "{\"kind\": \"asian\", \"more\": [{\"spot\": 1, \"strike\": 2, \"spot\": 3}]}";
    std::fs::write(place.path("twice.json"), twice).unwrap();
    let file = place.path("twice.json");
    let set = format!("a:={twice}");
    let mut answers = vec![
        place.json(&["ask", "far", "--input", text(&file)]),
        place.json(&["ask", "far", "--set", &set]),
    ];
    let mut child = place
        .command(&["ask", "far", "--input", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(twice.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    answers.push((output.status.code().unwrap(), one_object(&output)));
    for (exit, error) in answers {
        assert_eq!((exit, code(&error)), (2, "input_invalid"), "{error}");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("`spot` twice"), "{message}");
    }
    // Once each, it goes as far as to the node that is not there.
    std::fs::write(&file, twice.replace("\"spot\": 3", "\"seed\": 3")).unwrap();
    let (exit, error) = place.json(&["ask", "far", "--input", text(&file)]);
    assert_eq!((exit, code(&error)), (5, "node_not_running"));
}

/// The warnings of `config check`, which must be there for people, too.
fn warnings(place: &Place) -> Vec<Value> {
    let (exit, checked) = place.json(&["config", "check"]);
    assert_eq!((exit, &checked["valid"]), (0, &json!(true)), "{checked}");
    let warnings = checked["warnings"].as_array().unwrap().clone();
    let shown = String::from_utf8(place.run(&["config", "check"]).stdout).unwrap();
    for warning in &warnings {
        for part in ["code", "message"] {
            assert!(shown.contains(warning[part].as_str().unwrap()), "{shown}");
        }
    }
    assert_eq!(shown.matches("warning: ").count(), warnings.len());
    warnings
}

#[test]
fn an_empty_file_of_settings_is_said_to_be_empty() {
    let place = Place::new();
    place.init();
    assert_eq!(warnings(&place), Vec::<Value>::new());
    let config = place.home().join("config/legion.toml");
    std::fs::write(&config, "").unwrap();
    let told = warnings(&place);
    assert_eq!((told.len(), &told[0]["code"]), (1, &json!("config_empty")));
    let message = told[0]["message"].as_str().unwrap();
    assert!(message.contains(text(&config)), "{message}");
    assert!(message.ends_with("the file is empty: defaults apply"));
}

#[cfg(all(feature = "relay", feature = "labor"))]
#[test]
fn a_node_that_starts_with_an_empty_file_says_so() {
    use crate::support::world::Node;

    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[]);
    let relays = "[[relay]]\nurl = \"ws://127.0.0.1:9\"\n";
    std::fs::write(node.home.join("relays/public.toml"), relays).unwrap();
    node.up();
    assert!(!node.stderr().contains("config_empty"));
    node.terminate();
    std::fs::write(node.home.join("config/legion.toml"), "\n").unwrap();
    node.up();
    assert!(node.stderr().contains("config_empty"), "{}", node.stderr());
}

#[test]
fn what_a_skill_names_is_looked_for_before_the_node_starts() {
    let place = Place::new();
    place.init();
    let (gone, plain, runs) = (place.path("gone"), place.path("plain"), place.path("runs"));
    for (file, mode) in [(&plain, 0o600), (&runs, 0o700)] {
        std::fs::write(file, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let key = place.path("absent.key");
    let skill = |name: &str, program: &str| format!("[skills.{name}]\ncommand = [{program:?}]\n");
    let served = |name: &str, key: &str| {
        format!("[skills.{name}]\nopenai = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\n{key}\n")
    };
    let config = [
        skill("gone", text(&gone)),
        skill("nowhere", "legion-no-such-program"),
        skill("plain", text(&plain)),
        skill("runs", text(&runs)),
        skill("shell", "sh"),
        served("open", ""),
        served("locked", &format!("api_key_file = {:?}", text(&key))),
    ];
    std::fs::write(place.home().join("config/legion.toml"), config.concat()).unwrap();
    let told = warnings(&place);
    let expected = [
        ("gone", text(&gone)),
        ("locked", text(&key)),
        ("nowhere", "legion-no-such-program"),
        ("plain", text(&plain)),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (warning, (name, path)) in told.iter().zip(expected) {
        assert_eq!(
            (&warning["skill"], &warning["code"]),
            (&json!(name), &json!("worker_start"))
        );
        assert!(warning["message"].as_str().unwrap().contains(path));
    }
    // The same code as where it is started.
    let (exit, skills) = place.json(&["skills"]);
    assert_eq!(exit, 0);
    let failed = skills["not_offered"].as_array().unwrap();
    for (name, _) in expected {
        let found = failed.iter().find(|wrong| wrong["id"] == name);
        assert_eq!(found.unwrap()["code"], "worker_start", "{skills}");
    }
}

#[tokio::test]
async fn lists_in_lists_are_readable_and_what_is_cut_says_where_the_rest_is() {
    with_node(Arc::new(Place::new()), |place| {
        let output = place.run(&["wait", "nested"]);
        let shown = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.iter().all(|line| !matches!(line.trim(), "" | "-")));
        for line in ["  grid:", "    - [1,2]", "    - [[3],4]", "    - [1.5,2.5]"] {
            assert!(lines.contains(&line), "{line}: {shown}");
        }
        let vector = lines
            .iter()
            .find(|line| line.starts_with("  vector: [0.5,0.5,"));
        assert!(
            vector.is_some_and(|line| line.contains('…') && line.contains("--json has")),
            "{shown}"
        );
        assert!(
            lines.contains(&"    - … 18 more; --json has all"),
            "{shown}"
        );
        assert!(lines.len() < 60 && lines.iter().all(|line| line.chars().count() < 160));
    })
    .await;
}
