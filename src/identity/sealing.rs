//! The two envelopes of NIP-59. A rumor (unsigned) goes into a seal (kind 13, signed by its author, NIP-44 to the recipient),
//! and the seal into a gift wrap (signed by a one-time key). Making a wrap is the ceiling of a node's throughput: two Schnorr
//! signatures, one key generation and one ECDH are what is left of it, and each function runs on any thread. This room must not
//! know what the content says, nor which carrier takes the wrap.

use nostr::secp256k1::Message;
use nostr::{
    Event, EventId, Keys, Kind, PublicKey, SecretKey, Tag, Tags, Timestamp, UnsignedEvent,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::conversation::{Conversations, conversation_key, encrypt};
use super::error::IdentityError;

/// Kind of a message's rumor (ContextVM's number).
pub const KIND_MESSAGE: u16 = 25_910;
/// Kind of a seal (NIP-59).
pub const KIND_SEAL: u16 = 13;
/// Kind of a stored gift wrap (NIP-59).
pub const KIND_WRAP: u16 = 1_059;
/// Kind of an ephemeral gift wrap (NIP-59): relays pass it on and keep nothing.
pub const KIND_EPHEMERAL_WRAP: u16 = 21_059;
/// The largest rumor JSON; sealed and wrapped it still fits the 64 KiB event that relays take.
pub const MAX_RUMOR_BYTES: usize = 28_672;
/// The largest event that is looked at.
pub const MAX_EVENT_BYTES: usize = 65_536;
/// How far seals and stored wraps are dated back at most (NIP-59).
pub const MAX_BACKDATE_S: u64 = 172_800;
/// How far an expiration may lie after the creation.
pub const MAX_EXPIRATION_S: u64 = 30 * 86_400;
/// The most work that is mined; 20 bits of a 60 kB wrap take about a minute, so this is a wall, not a target.
pub const MAX_POW_BITS: u8 = 20;

/// Digits of the mined nonce: a fixed width, so that mining changes bytes in place.
const NONCE_DIGITS: usize = 20;

/// What a message is made of.
#[derive(Clone)]
pub struct Draft {
    /// Who says it: the identity, or a one-time reply key.
    pub author: PublicKey,
    /// Whose inbox it goes to; becomes the `p` tag.
    pub recipient: PublicKey,
    /// The JSON-RPC object.
    pub content: String,
    /// The rumor that it answers; becomes the `e` tag.
    pub reply_to: Option<EventId>,
    /// The true creation time, Unix seconds.
    pub created_at_s: u64,
    /// When it loses its meaning, Unix seconds (NIP-40); at most 30 days after the creation.
    pub expires_at_s: Option<u64>,
}

/// Whether relays keep a wrap for a peer that is offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Kind 1059, dated back at random: for everything that must survive the peer being offline.
    Stored,
    /// Kind 21059, dated now (relays refuse old ephemeral events): for acks, progress, pings.
    Ephemeral,
}

/// Builds the rumor, with its id. Fails with `rumor_too_large` or `expiration_invalid`, so that a message that cannot be sent
/// is refused before anything is committed.
pub fn rumor(draft: Draft) -> Result<UnsignedEvent, IdentityError> {
    if draft
        .expires_at_s
        .is_some_and(|at| at <= draft.created_at_s || at - draft.created_at_s > MAX_EXPIRATION_S)
    {
        return Err(IdentityError::ExpirationInvalid);
    }
    let mut tags = Vec::with_capacity(3);
    tags.push(Tag::public_key(draft.recipient));
    tags.extend(draft.reply_to.map(Tag::event));
    tags.extend(
        draft
            .expires_at_s
            .map(|at| Tag::expiration(Timestamp::from_secs(at))),
    );
    let created_at = Timestamp::from_secs(draft.created_at_s);
    let mut rumor = UnsignedEvent::new(
        draft.author,
        created_at,
        Kind::from_u16(KIND_MESSAGE),
        tags,
        draft.content,
    );
    rumor.id = Some(event_id(&preimage(
        &rumor.pubkey,
        draft.created_at_s,
        KIND_MESSAGE,
        &rumor.tags,
        &rumor.content,
    )?));
    rumor_json(&rumor)?;
    Ok(rumor)
}

/// Seals a rumor for `recipient`: kind 13, no tags, signed by `author`, dated back up to two days from `now_s`. The author
/// must be the rumor's (`sealing_failed` otherwise): a receiver refuses a seal that speaks for another key.
pub fn seal(
    conversations: &Conversations,
    author: &Keys,
    recipient: &PublicKey,
    rumor: &UnsignedEvent,
    now_s: u64,
) -> Result<Event, IdentityError> {
    if rumor.pubkey != author.public_key() {
        return Err(IdentityError::SealingFailed("the rumor has another author"));
    }
    let json = rumor_json(rumor)?;
    let content = encrypt(&conversations.key(author, recipient)?, &json)?;
    signed(author, backdated(now_s)?, KIND_SEAL, Tags::new(), content)
}

/// Wraps a seal for `recipient` under a new one-time key. `pow_bits` of NIP-13 work are mined on the wrap (0 for none; the cost
/// doubles with each bit: 12 bits of a 3 kB wrap take some tens of milliseconds). `expires_at_s` becomes the wrap's own
/// `expiration` tag (NIP-40), which relays can read.
pub fn wrap(
    seal: &Event,
    recipient: &PublicKey,
    delivery: Delivery,
    pow_bits: u8,
    expires_at_s: Option<u64>,
    now_s: u64,
) -> Result<Event, IdentityError> {
    if pow_bits > MAX_POW_BITS {
        return Err(IdentityError::PowTooCostly {
            bits: pow_bits,
            max_bits: MAX_POW_BITS,
        });
    }
    let one_time = one_time_keys()?;
    let json = serde_json::to_vec(seal)
        .map_err(|_| IdentityError::SealingFailed("the seal is not JSON"))?;
    let content = encrypt(&conversation_key(&one_time, recipient)?, &json)?;
    let (kind, created_at_s) = match delivery {
        Delivery::Stored => (KIND_WRAP, backdated(now_s)?),
        Delivery::Ephemeral => (KIND_EPHEMERAL_WRAP, now_s),
    };
    let mut tags = Vec::with_capacity(3);
    tags.push(Tag::public_key(*recipient));
    tags.extend(expires_at_s.map(|at| Tag::expiration(Timestamp::from_secs(at))));
    if pow_bits > 0 {
        tags.push(mined_nonce(
            &one_time.public_key(),
            created_at_s,
            kind,
            &tags,
            &content,
            pow_bits,
        )?);
    }
    signed(
        &one_time,
        created_at_s,
        kind,
        Tags::from_list(tags),
        content,
    )
}

/// The bytes whose SHA-256 is an event's id (NIP-01). Written in one pass, without the intermediate tree of the library.
pub fn preimage(
    pubkey: &PublicKey,
    created_at_s: u64,
    kind: u16,
    tags: &Tags,
    content: &str,
) -> Result<Vec<u8>, IdentityError> {
    let mut bytes = Vec::with_capacity(content.len() + content.len() / 8 + 512);
    serde_json::to_writer(
        &mut bytes,
        &(0u8, pubkey, created_at_s, kind, tags, content),
    )
    .map_err(|_| IdentityError::SealingFailed("the event is not JSON"))?;
    Ok(bytes)
}

/// The event id of a preimage.
pub fn event_id(preimage: &[u8]) -> EventId {
    EventId::from_byte_array(Sha256::digest(preimage).into())
}

fn signed(
    keys: &Keys,
    created_at_s: u64,
    kind: u16,
    tags: Tags,
    content: String,
) -> Result<Event, IdentityError> {
    let pubkey = keys.public_key();
    let id = event_id(&preimage(&pubkey, created_at_s, kind, &tags, &content)?);
    let signature = keys.sign_schnorr(&Message::from_digest(id.to_bytes()));
    Ok(Event::new(
        id,
        pubkey,
        Timestamp::from_secs(created_at_s),
        Kind::from_u16(kind),
        tags,
        content,
        signature,
    ))
}

fn rumor_json(rumor: &UnsignedEvent) -> Result<Vec<u8>, IdentityError> {
    let too_large = |bytes| IdentityError::RumorTooLarge {
        bytes,
        max_bytes: MAX_RUMOR_BYTES,
    };
    if rumor.content.len() > MAX_RUMOR_BYTES {
        return Err(too_large(rumor.content.len()));
    }
    let json = serde_json::to_vec(rumor)
        .map_err(|_| IdentityError::SealingFailed("the rumor is not JSON"))?;
    if json.len() > MAX_RUMOR_BYTES {
        Err(too_large(json.len()))
    } else {
        Ok(json)
    }
}

fn backdated(now_s: u64) -> Result<u64, IdentityError> {
    // The remainder's bias is below 2^-46.
    let back_s = getrandom::u64().map_err(IdentityError::EntropyUnavailable)? % MAX_BACKDATE_S;
    Ok(now_s.saturating_sub(back_s))
}

fn one_time_keys() -> Result<Keys, IdentityError> {
    loop {
        let mut bytes = Zeroizing::new([0u8; 32]);
        getrandom::fill(bytes.as_mut_slice()).map_err(IdentityError::EntropyUnavailable)?;
        // All but one value in 2^128 are scalars.
        if let Ok(secret) = SecretKey::from_slice(bytes.as_slice()) {
            return Ok(Keys::new(secret));
        }
    }
}

/// Finds the `nonce` tag that gives the event `bits` leading zero bits (NIP-13). The preimage is written once, the digits are
/// counted up in place.
fn mined_nonce(
    pubkey: &PublicKey,
    created_at_s: u64,
    kind: u16,
    others: &[Tag],
    content: &str,
    bits: u8,
) -> Result<Tag, IdentityError> {
    let failed = || IdentityError::SealingFailed("no work was found");
    let zeros = "0".repeat(NONCE_DIGITS);
    let mut tags = others.to_vec();
    tags.push(nonce_tag(&zeros, bits)?);
    let mut bytes = preimage(pubkey, created_at_s, kind, &Tags::from_list(tags), content)?;
    let mark = b"[\"nonce\",\"";
    // Tags come before the content, and those before ours hold hex and digits only: the first match is ours.
    let at = bytes
        .windows(mark.len())
        .position(|window| window == mark)
        .ok_or_else(failed)?
        + mark.len();
    loop {
        if event_id(&bytes).check_pow(bits) {
            let digits = bytes.get(at..at + NONCE_DIGITS).ok_or_else(failed)?;
            return nonce_tag(std::str::from_utf8(digits).map_err(|_| failed())?, bits);
        }
        let digits = bytes.get_mut(at..at + NONCE_DIGITS).ok_or_else(failed)?;
        for digit in digits.iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                break;
            }
            *digit = b'0';
        }
    }
}

fn nonce_tag(digits: &str, bits: u8) -> Result<Tag, IdentityError> {
    Tag::parse(["nonce", digits, &bits.to_string()])
        .map_err(|_| IdentityError::SealingFailed("no nonce tag"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::identity::conversation::decrypt;

    const NOW_S: u64 = 1_795_219_200;

    fn draft(author: &Keys, recipient: &Keys, content: String) -> Draft {
        Draft {
            author: author.public_key(),
            recipient: recipient.public_key(),
            content,
            reply_to: None,
            created_at_s: NOW_S,
            expires_at_s: Some(NOW_S + 60),
        }
    }

    /// NIP-59's example: ids and both layers come out as printed.
    #[test]
    fn the_nip59_example_is_opened_layer_by_layer() {
        let example: serde_json::Value =
            serde_json::from_str(include_str!("../../fixtures/identity/nip59.json")).unwrap();
        let key = |name: &str| Keys::parse(example[name].as_str().unwrap()).unwrap();
        let (author, recipient, wrapper) = (
            key("author_secret"),
            key("recipient_secret"),
            key("wrapper_secret"),
        );
        let wrap: Event = serde_json::from_value(example["wrap"].clone()).unwrap();
        let seal: Event = serde_json::from_value(example["seal"].clone()).unwrap();
        let rumor: UnsignedEvent = serde_json::from_value(example["rumor"].clone()).unwrap();
        assert_eq!(
            (wrap.pubkey, seal.pubkey),
            (wrapper.public_key(), author.public_key())
        );
        for event in [&wrap, &seal] {
            let bytes = preimage(
                &event.pubkey,
                event.created_at.as_secs(),
                event.kind.as_u16(),
                &event.tags,
                &event.content,
            );
            assert_eq!(event_id(&bytes.unwrap()), event.id);
            assert!(event.verify_signature());
        }
        let conversations = Conversations::new(8);
        let inside = decrypt(
            &conversations.key(&recipient, &wrap.pubkey).unwrap(),
            &wrap.content,
        )
        .unwrap();
        assert_eq!(serde_json::from_slice::<Event>(&inside).unwrap(), seal);
        let inside = decrypt(
            &conversations.key(&recipient, &seal.pubkey).unwrap(),
            &seal.content,
        )
        .unwrap();
        assert_eq!(
            serde_json::from_slice::<UnsignedEvent>(&inside).unwrap(),
            rumor
        );
    }

    #[test]
    fn another_implementation_opens_what_we_wrap() {
        let (author, recipient) = (Keys::generate(), Keys::generate());
        let mut drafted = draft(
            &author,
            &recipient,
            "{\"jsonrpc\":\"2.0\",\"text\":\"\u{1f355} \\u0007\"}".into(),
        );
        drafted.reply_to = Some(EventId::all_zeros());
        let rumor = rumor(drafted).unwrap();
        let seal = seal(
            &Conversations::new(8),
            &author,
            &recipient.public_key(),
            &rumor,
            NOW_S,
        )
        .unwrap();
        let wrap = wrap(
            &seal,
            &recipient.public_key(),
            Delivery::Stored,
            0,
            Some(NOW_S + 60),
            NOW_S,
        )
        .unwrap();
        wrap.verify().unwrap();
        // The nostr crate's own unwrapper, as the independent reader.
        let opened = nostr::nips::nip59::extract_rumor(&recipient, &wrap);
        let opened = futures_util::FutureExt::now_or_never(opened)
            .unwrap()
            .unwrap();
        assert_eq!(opened.sender, author.public_key());
        assert_eq!(opened.rumor, rumor);
        rumor.verify_id().unwrap();
        assert_eq!(rumor.tags.len(), 3);
    }

    #[test]
    fn what_relays_see_names_nobody_but_the_recipient() {
        let (author, recipient) = (Keys::generate(), Keys::generate());
        let rumor = rumor(draft(&author, &recipient, "{}".into())).unwrap();
        let seal = seal(
            &Conversations::new(8),
            &author,
            &recipient.public_key(),
            &rumor,
            NOW_S,
        )
        .unwrap();
        assert_eq!((seal.kind.as_u16(), seal.tags.len()), (KIND_SEAL, 0));
        let stored = wrap(
            &seal,
            &recipient.public_key(),
            Delivery::Stored,
            0,
            None,
            NOW_S,
        )
        .unwrap();
        let again = wrap(
            &seal,
            &recipient.public_key(),
            Delivery::Stored,
            0,
            None,
            NOW_S,
        )
        .unwrap();
        let ephemeral = wrap(
            &seal,
            &recipient.public_key(),
            Delivery::Ephemeral,
            0,
            None,
            NOW_S,
        )
        .unwrap();
        assert_ne!(stored.pubkey, again.pubkey);
        assert_eq!(
            (stored.kind.as_u16(), ephemeral.kind.as_u16()),
            (KIND_WRAP, KIND_EPHEMERAL_WRAP)
        );
        assert_eq!(ephemeral.created_at.as_secs(), NOW_S);
        for event in [&seal, &stored, &again] {
            assert!((NOW_S - MAX_BACKDATE_S..=NOW_S).contains(&event.created_at.as_secs()));
        }
        assert!(
            !serde_json::to_string(&stored)
                .unwrap()
                .contains(&author.public_key().to_hex())
        );
    }

    #[test]
    fn work_is_committed_to_and_real() {
        let (author, recipient) = (Keys::generate(), Keys::generate());
        let rumor = rumor(draft(&author, &recipient, "{}".into())).unwrap();
        let seal = seal(
            &Conversations::new(8),
            &author,
            &recipient.public_key(),
            &rumor,
            NOW_S,
        )
        .unwrap();
        let wrapped = wrap(
            &seal,
            &recipient.public_key(),
            Delivery::Stored,
            8,
            Some(NOW_S + 60),
            NOW_S,
        )
        .unwrap();
        wrapped.verify().unwrap();
        assert!(wrapped.check_pow(8));
        let nonce = wrapped
            .tags
            .iter()
            .find(|tag| tag.as_slice()[0] == "nonce")
            .unwrap();
        assert_eq!(nonce.as_slice()[2], "8");
        let greedy = wrap(
            &seal,
            &recipient.public_key(),
            Delivery::Stored,
            MAX_POW_BITS + 1,
            None,
            NOW_S,
        );
        assert_eq!(greedy.unwrap_err().code(), "pow_too_costly");
    }

    #[test]
    fn the_largest_rumor_fits_a_relay_and_one_byte_more_is_refused() {
        let (author, recipient) = (Keys::generate(), Keys::generate());
        let overhead =
            serde_json::to_vec(&rumor(draft(&author, &recipient, String::new())).unwrap())
                .unwrap()
                .len();
        let largest = rumor(draft(
            &author,
            &recipient,
            "x".repeat(MAX_RUMOR_BYTES - overhead),
        ))
        .unwrap();
        let seal = seal(
            &Conversations::new(8),
            &author,
            &recipient.public_key(),
            &largest,
            NOW_S,
        )
        .unwrap();
        let wrapped = wrap(
            &seal,
            &recipient.public_key(),
            Delivery::Stored,
            4,
            Some(NOW_S + 60),
            NOW_S,
        )
        .unwrap();
        assert!(serde_json::to_vec(&wrapped).unwrap().len() <= MAX_EVENT_BYTES);
        let error = rumor(draft(
            &author,
            &recipient,
            "x".repeat(MAX_RUMOR_BYTES - overhead + 1),
        ))
        .unwrap_err();
        assert_eq!(error.code(), "rumor_too_large");
        // Escapes count as they are sent.
        let error = rumor(draft(
            &author,
            &recipient,
            "\n".repeat(MAX_RUMOR_BYTES / 2 + 1),
        ))
        .unwrap_err();
        assert_eq!(error.code(), "rumor_too_large");
    }

    #[test]
    fn a_message_that_no_receiver_would_take_is_not_made() {
        let (author, recipient) = (Keys::generate(), Keys::generate());
        for at in [NOW_S, NOW_S - 1, NOW_S + MAX_EXPIRATION_S + 1] {
            let mut wrong = draft(&author, &recipient, "{}".into());
            wrong.expires_at_s = Some(at);
            assert_eq!(rumor(wrong).unwrap_err().code(), "expiration_invalid");
        }
        let rumor = rumor(draft(&author, &recipient, "{}".into())).unwrap();
        let error = seal(
            &Conversations::new(8),
            &recipient,
            &author.public_key(),
            &rumor,
            NOW_S,
        )
        .unwrap_err();
        assert_eq!(error.code(), "sealing_failed");
    }
}
