//! Any JSON value for people, as indented `name: value` lines. What is too long for a person is cut, and says so: a program reads
//! all of it with `--json`.

use serde_json::Value;

/// Most characters of a list on one line.
const LINE_CHARS: usize = 100;
/// Most items of a list that have lines of their own.
const ITEMS: usize = 32;

/// Any view, as indented `name: value` lines.
pub(crate) fn tree(view: &Value) -> String {
    let mut text = String::new();
    branch(view, 0, &mut text);
    text.trim_end().to_owned()
}

fn branch(view: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match view {
        _ if is_leaf(view) => text.push_str(&format!("{indent}{}\n", scalar(view))),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            if is_leaf(value) {
                text.push_str(&format!("{indent}{name}: {}\n", scalar(value)));
            } else {
                text.push_str(&format!("{indent}{name}:\n"));
                branch(value, depth + 1, text);
            }
        }),
        Value::Array(items) => {
            for item in items.iter().take(ITEMS) {
                match item {
                    // Its first field stands behind the dash.
                    Value::Object(fields) if !fields.is_empty() => {
                        let mut inner = String::new();
                        branch(item, depth + 1, &mut inner);
                        text.push_str(&format!("{indent}- {}", inner.trim_start()));
                    }
                    _ => text.push_str(&format!("{indent}- {}\n", scalar(item))),
                }
            }
            if let Some(more) = items.len().checked_sub(ITEMS).filter(|more| *more > 0) {
                text.push_str(&format!("{indent}- … {more} more; --json has all\n"));
            }
        }
        _ => {}
    }
}

/// Whether a value has one line: a list of numbers has.
fn is_leaf(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => !items
            .iter()
            .any(|item| item.is_string() || item.is_object() || item.is_array()),
        _ => true,
    }
}

/// A value on one line.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Object(fields) if fields.is_empty() => "none".to_owned(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => cut(&value.to_string(), items.len()),
        Value::Object(fields) => cut(&value.to_string(), fields.len()),
        other => other.to_string(),
    }
}

/// JSON of so many items, cut at a comma where it is too long for a line.
fn cut(json: &str, items: usize) -> String {
    let Some((end, _)) = json.char_indices().nth(LINE_CHARS) else {
        return json.to_owned();
    };
    let line = json.get(..end).unwrap_or_default();
    let line = line.rsplit_once(',').map_or(line, |(whole, _)| whole);
    format!("{line},… ({items} in all; --json has them)")
}

#[cfg(test)]
mod tests {
    //! Everything is shown, or named as left out.
    use super::tree;
    use serde_json::json;

    #[test]
    fn lists_of_lists_have_a_line_each_and_long_ones_are_cut() {
        let view = json!({
            "grid": [[1, 2], [3], []], "mixed": [[["a", 1.5], {}], "b"], "named": [{"id": "x", "of": ["y"]}], "none": [], "yes": [true, null],
        });
        let expected = [
            "grid:",
            "  - [1,2]",
            "  - [3]",
            "  - none",
            "mixed:",
            "  - [[\"a\",1.5],{}]",
            "  - b",
            "named:",
            "  - id: x",
            "    of:",
            "      - y",
            "none: none",
            "yes: [true,null]",
        ];
        assert_eq!(tree(&view).lines().collect::<Vec<_>>(), expected);

        let vectors = vec![vec![0.125; 384]; 40];
        let text = tree(&json!({ "vectors": vectors }));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 32 + 1);
        assert!(lines.iter().all(|line| line.chars().count() < 150));
        assert!(lines[1].starts_with("  - [0.125,0.125,"), "{}", lines[1]);
        assert!(lines[1].ends_with("0.125,… (384 in all; --json has them)"));
        assert_eq!(lines[33], "  - … 8 more; --json has all");
    }
}
