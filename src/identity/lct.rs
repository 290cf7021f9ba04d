//! The name of an identity: `lct:web4:agent:<owner>@<node>#<role>`, for example `lct:web4:agent:ada@attic#worker`. The name says
//! whose node it is and what it is for; it proves nothing, keys do. It must not know where names are stored or looked up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::IdentityError;

const PREFIX: &str = "lct:web4:agent:";
/// The longest owner, node or role, in bytes.
pub const MAX_LCT_PART_BYTES: usize = 64;

/// A validated LCT. Each part is 1 to 64 of `a-z 0-9 . _ -`, so that two names that look alike are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lct {
    owner: String,
    node: String,
    role: String,
}

impl Lct {
    /// Builds a name from its parts. Refuses with `lct_invalid`.
    pub fn new(owner: &str, node: &str, role: &str) -> Result<Self, IdentityError> {
        let refused = |reason| IdentityError::LctInvalid {
            text: format!("{PREFIX}{owner}@{node}#{role}")
                .chars()
                .take(120)
                .collect(),
            reason,
        };
        check(owner).map_err(|()| refused("the owner must be 1 to 64 of a-z 0-9 . _ -"))?;
        check(node).map_err(|()| refused("the node must be 1 to 64 of a-z 0-9 . _ -"))?;
        check(role).map_err(|()| refused("the role must be 1 to 64 of a-z 0-9 . _ -"))?;
        Ok(Self {
            owner: owner.to_owned(),
            node: node.to_owned(),
            role: role.to_owned(),
        })
    }

    /// Whose node it is.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Which of the owner's nodes.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What it is for; permissions may be given by role.
    pub fn role(&self) -> &str {
        &self.role
    }
}

fn check(part: &str) -> Result<(), ()> {
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    if (1..=MAX_LCT_PART_BYTES).contains(&part.len()) && part.bytes().all(allowed) {
        Ok(())
    } else {
        Err(())
    }
}

impl fmt::Display for Lct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}@{}#{}", self.owner, self.node, self.role)
    }
}

impl FromStr for Lct {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let refused = |reason| IdentityError::LctInvalid {
            text: text.chars().take(120).collect(),
            reason,
        };
        let rest = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| refused("it does not start with `lct:web4:agent:`"))?;
        let (owner, rest) = rest
            .split_once('@')
            .ok_or_else(|| refused("the `@` is missing"))?;
        let (node, role) = rest
            .split_once('#')
            .ok_or_else(|| refused("the `#` is missing"))?;
        Self::new(owner, node, role)
    }
}

impl TryFrom<String> for Lct {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<Lct> for String {
    fn from(lct: Lct) -> Self {
        lct.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_name_survives_text_and_json() {
        let lct: Lct = "lct:web4:agent:ada@attic-2#worker".parse().unwrap();
        assert_eq!(
            (lct.owner(), lct.node(), lct.role()),
            ("ada", "attic-2", "worker")
        );
        let json = serde_json::to_string(&lct).unwrap();
        assert_eq!(json, "\"lct:web4:agent:ada@attic-2#worker\"");
        assert_eq!(serde_json::from_str::<Lct>(&json).unwrap(), lct);
    }

    #[test]
    fn a_name_that_could_be_mistaken_for_another_is_refused() {
        let long = format!("lct:web4:agent:{}@b#c", "a".repeat(65));
        let foreign = "lct:web4:agent:\u{430}da@attic#worker"; // a Cyrillic letter that looks like `a`
        for text in [
            "",
            "ada@attic#worker",
            "lct:web4:agent:@b#c",
            "lct:web4:agent:a@b",
            "lct:web4:agent:a#c",
            "lct:web4:agent:A@b#c",
            "lct:web4:agent:a@b#c#d",
            "lct:web4:agent:a@b@c#d",
            "lct:web4:agent:a b@c#d",
            &long,
            foreign,
        ] {
            assert_eq!(
                text.parse::<Lct>().unwrap_err().code(),
                "lct_invalid",
                "{text}"
            );
        }
        assert!(serde_json::from_str::<Lct>("\"x\"").is_err());
    }
}
