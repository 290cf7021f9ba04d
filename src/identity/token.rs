//! The `legion1…` text: bytes that a person copies from one machine to another, in bech32m (BIP-350), so that a mistyped or cut
//! text is noticed, and signed by the Nostr key of who made it (BIP-340), so that it says truly from whom it is. An invite and a
//! contact are two kinds of it. It must not know what the fields mean.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1 |
//! | 1 | kind: 1 invite, 2 contact |
//! | 32 | the author's Nostr key |
//! | 8 | until when it holds, Unix seconds |
//! | | the kind's own fields |
//! | 64 | the author's signature over SHA-256 of `legion/token/v1\0` and all bytes before |
//!
//! Integers are big-endian, a text is its length in one byte and then its bytes.

use bech32::primitives::decode::UncheckedHrpstring;
use bech32::{Bech32m, Hrp};
use nostr::secp256k1::schnorr::Signature;
use nostr::secp256k1::{Message, XOnlyPublicKey};
use nostr::{Keys, PublicKey, SECP256K1};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::{Fault, IdentityError};

/// What stands before the separator `1`.
pub const HRP: &str = "legion";
/// Longest text: within it the checksum finds any four wrong characters (BIP-350; the code's length is 1,023).
pub const MAX_CHARS: usize = 1_023;
/// Most bytes that such a text holds: what is left of it in groups of 5 bits.
pub const MAX_BYTES: usize = (MAX_CHARS - HRP.len() - 1 - 6) * 5 / 8;
/// Most relays in one.
pub const MAX_RELAYS: usize = 8;

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"legion/token/v1\0";
const SIGNATURE_BYTES: usize = 64;

/// What such a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It makes its reader a member of a private pool.
    Invite,
    /// It introduces a node.
    Contact,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Invite => 1,
            Self::Contact => 2,
        }
    }

    /// What people call it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Invite => "invite",
            Self::Contact => "contact",
        }
    }

    /// The error of a text that was meant to be of this kind.
    pub(crate) fn refuse(self, fault: Fault) -> IdentityError {
        IdentityError::TokenInvalid { kind: self, fault }
    }
}

/// Fields on their way into a text; erased when dropped, for an invite holds a secret.
pub(crate) struct Writer {
    kind: Kind,
    bytes: Zeroizing<Vec<u8>>,
}

impl Writer {
    pub(crate) fn new(kind: Kind, author: &PublicKey, expires_at_s: u64) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
        bytes.extend_from_slice(&[VERSION, kind.byte()]);
        bytes.extend_from_slice(author.as_bytes());
        bytes.extend_from_slice(&expires_at_s.to_be_bytes());
        Self { kind, bytes }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A text of at most 255 bytes; a longer one is cut off at nothing, so callers check first.
    pub(crate) fn text(&mut self, text: &str) {
        let length = u8::try_from(text.len()).unwrap_or(0);
        self.bytes.push(length);
        if length > 0 {
            self.bytes.extend_from_slice(text.as_bytes());
        }
    }

    /// Bytes that still fit before the signature.
    pub(crate) fn room(&self) -> usize {
        MAX_BYTES.saturating_sub(self.bytes.len() + SIGNATURE_BYTES)
    }

    /// As many of the relays as still fit, the first ones first; `reserved` bytes are left for what follows them.
    pub(crate) fn relays(&mut self, relays: &[String], reserved: usize) {
        let count_at = self.bytes.len();
        self.bytes.push(0);
        let mut count = 0u8;
        for relay in relays.iter().filter(|relay| relay.len() <= 255) {
            let fits = 1 + relay.len() + reserved <= self.room();
            if fits && usize::from(count) < MAX_RELAYS {
                self.text(relay);
                count += 1;
            }
        }
        if let Some(place) = self.bytes.get_mut(count_at) {
            *place = count;
        }
    }

    /// The text.
    pub(crate) fn sign(mut self, keys: &Keys) -> Result<Zeroizing<String>, IdentityError> {
        let signature = keys.sign_schnorr(&Message::from_digest(digest(&self.bytes)));
        self.bytes.extend_from_slice(signature.as_ref());
        let text = bech32::encode::<Bech32m>(Hrp::parse_unchecked(HRP), &self.bytes)
            .map_err(|_| self.kind.refuse(Fault::TooLong { max: MAX_CHARS }))?;
        Ok(Zeroizing::new(text))
    }
}

/// The fields of a text whose checksum, version, kind and signature hold.
pub(crate) struct Reader {
    kind: Kind,
    bytes: Zeroizing<Vec<u8>>,
    at: usize,
    end: usize,
    pub(crate) author: PublicKey,
    pub(crate) expires_at_s: u64,
}

impl Reader {
    /// Opens a text of this kind. `now_s` is Unix seconds. Spaces around it are ignored, and it may be all upper-case.
    pub(crate) fn open(kind: Kind, text: &str, now_s: u64) -> Result<Self, IdentityError> {
        let refuse = |fault| kind.refuse(fault);
        let bytes = decode(text).map_err(refuse)?;
        if bytes.first() != Some(&VERSION) {
            return Err(refuse(Fault::Version(bytes.first().copied().unwrap_or(0))));
        }
        match bytes.get(1) {
            Some(byte) if *byte == kind.byte() => {}
            Some(1 | 2) => return Err(refuse(Fault::Kind)),
            _ => return Err(refuse(Fault::Malformed)),
        }
        let end = bytes.len().saturating_sub(SIGNATURE_BYTES);
        let mut this = Self {
            kind,
            author: PublicKey::from_byte_array([0; 32]),
            expires_at_s: 0,
            bytes,
            at: 2,
            end,
        };
        this.author = PublicKey::from_byte_array(this.array()?);
        this.expires_at_s = u64::from_be_bytes(this.array()?);
        this.check_signature()?;
        if this.expires_at_s <= now_s {
            return Err(refuse(Fault::Expired {
                at_s: this.expires_at_s,
            }));
        }
        Ok(this)
    }

    fn check_signature(&self) -> Result<(), IdentityError> {
        let forged = || self.kind.refuse(Fault::Signature);
        let (signed, signature) = self.bytes.split_at_checked(self.end).ok_or_else(forged)?;
        let signature = Signature::from_slice(signature).map_err(|_| forged())?;
        let key = XOnlyPublicKey::from_slice(self.author.as_bytes()).map_err(|_| forged())?;
        SECP256K1
            .verify_schnorr(&signature, &Message::from_digest(digest(signed)), &key)
            .map_err(|_| forged())
    }

    /// The next bytes.
    pub(crate) fn take(&mut self, length: usize) -> Result<&[u8], IdentityError> {
        let until = self.at.saturating_add(length);
        let taken = match until <= self.end {
            true => self.bytes.get(self.at..until),
            false => None,
        };
        self.at = until;
        taken.ok_or_else(|| self.kind.refuse(Fault::Malformed))
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], IdentityError> {
        let mut array = [0u8; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// The next text.
    pub(crate) fn text(&mut self) -> Result<String, IdentityError> {
        let kind = self.kind;
        let [length] = self.array::<1>()?;
        std::str::from_utf8(self.take(usize::from(length))?)
            .map(str::to_owned)
            .map_err(|_| kind.refuse(Fault::Malformed))
    }

    /// The relays.
    pub(crate) fn relays(&mut self) -> Result<Vec<String>, IdentityError> {
        let [count] = self.array::<1>()?;
        if usize::from(count) > MAX_RELAYS {
            return Err(self.kind.refuse(Fault::Malformed));
        }
        (0..count).map(|_| self.text()).collect()
    }

    /// Bytes that were not read yet.
    pub(crate) fn left(&self) -> usize {
        self.end.saturating_sub(self.at)
    }

    /// To be called when everything was read: what stands beyond was written by nobody of this version.
    pub(crate) fn end(self) -> Result<(), IdentityError> {
        match self.at == self.end {
            true => Ok(()),
            false => Err(self.kind.refuse(Fault::Malformed)),
        }
    }
}

/// Whether a text is meant to be one of these.
pub fn looks_like(text: &str) -> bool {
    let text = text.trim();
    text.get(..HRP.len() + 1)
        .is_some_and(|head| head.eq_ignore_ascii_case("legion1"))
}

fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let text = text.trim();
    if text.len() > MAX_CHARS {
        return Err(Fault::TooLong { max: MAX_CHARS });
    }
    let parts = UncheckedHrpstring::new(text).map_err(|_| Fault::Malformed)?;
    if parts.hrp() != Hrp::parse_unchecked(HRP) {
        return Err(Fault::Hrp);
    }
    if !parts.has_valid_checksum::<Bech32m>() {
        return Err(Fault::Checksum);
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    bytes.extend(parts.remove_checksum::<Bech32m>().byte_iter());
    // The bits that fill up the last group are zero: one content has one spelling.
    let again = bech32::encode_lower::<Bech32m>(Hrp::parse_unchecked(HRP), &bytes);
    match again.map(Zeroizing::new) {
        Ok(again) if again.eq_ignore_ascii_case(text) => Ok(bytes),
        _ => Err(Fault::Malformed),
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(DOMAIN)
        .chain_update(bytes)
        .finalize()
        .into()
}
