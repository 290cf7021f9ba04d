//! Who signs. One BIP-39 seed gives every key of a node: the Nostr identity (NIP-06, secp256k1) and, by HKDF with a label each,
//! an Ed25519 key for proofs, an Ed25519 key for libp2p, an X25519 key for sealing payloads, and a root for one-time reply keys.
//! This room keeps them in one encrypted file, and closes a message into the two envelopes of NIP-59 (seal, gift wrap).
//!
//! It must not know what a message says, how it travels, or what is stored about it; time and limits are parameters. Nothing
//! here prints a secret: no type that holds one derives `Debug` or `Serialize`, and no error quotes one.

pub mod blob;
pub mod contact;
pub mod conversation;
pub mod error;
pub mod invite;
pub mod keyfile;
pub mod keys;
pub mod lct;
pub mod mnemonic;
pub mod pool;
pub mod pool_book;
pub mod pool_file;
pub mod sealing;
pub mod token;

pub use error::IdentityError;
pub use keys::{Identity, PublicIdentity};
pub use lct::Lct;
pub use mnemonic::Mnemonic;

/// The bech32 form (`npub1…`) of a Nostr key given in hex; the text itself if it is no key.
pub fn npub(hex: &str) -> String {
    use nostr::ToBech32;
    nostr::PublicKey::from_hex(hex)
        .ok()
        .and_then(|key| key.to_bech32().ok())
        .unwrap_or_else(|| hex.to_owned())
}

/// The hex form of a Nostr key given as `npub1…` or hex.
///
/// # Errors
/// `npub_invalid`.
pub fn parse_npub(text: &str) -> Result<String, IdentityError> {
    nostr::PublicKey::parse(text)
        .ok()
        // Not every 32 bytes are a point of the curve.
        .filter(|key| key.xonly().is_ok())
        .map(|key| key.to_hex())
        .ok_or_else(|| IdentityError::NpubInvalid(text.chars().take(80).collect()))
}
