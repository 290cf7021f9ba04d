//! An invite says exactly what its author wrote, or it is refused under a code of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bech32::{Bech32, Bech32m, Hrp};

use super::*;
use crate::identity::contact::Contact;
use crate::identity::token;

const NOW_S: u64 = 1_795_219_200;

fn invite(keys: &Keys) -> Invite {
    Invite {
        name: "family".into(),
        pool: [7; 16],
        epoch: 3,
        secret: PoolSecret::from_bytes([0xab; 32]),
        before_until_s: NOW_S + 60,
        relays: vec!["wss://a.example".into(), "ws://10.0.0.2:7777".into()],
        inviter: keys.public_key(),
        expires_at_s: NOW_S + 3_600,
    }
}

fn code(text: &str) -> &'static str {
    Invite::decode(text, NOW_S).unwrap_err().code()
}

/// The bytes of a text, changed, with a checksum that fits.
fn changed(text: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let (hrp, mut bytes) = bech32::decode(text).unwrap();
    change(&mut bytes);
    bech32::encode::<Bech32m>(hrp, &bytes).unwrap()
}

#[test]
fn what_was_written_is_read() {
    let keys = Keys::generate();
    let text = invite(&keys).encode(&keys).unwrap();
    assert!(text.starts_with("legion1") && text.len() <= token::MAX_CHARS);
    let upper = text.to_ascii_uppercase();
    for text in [text.as_str(), &format!("  {}\n", *text), &upper] {
        assert!(token::looks_like(text));
        let read = Invite::decode(text, NOW_S).unwrap();
        let written = invite(&keys);
        assert_eq!(
            (&read.name, read.pool, read.epoch, read.secret.as_bytes()),
            (
                &written.name,
                written.pool,
                written.epoch,
                written.secret.as_bytes()
            )
        );
        assert_eq!(
            (read.before_until_s, read.relays, read.inviter),
            (written.before_until_s, written.relays, keys.public_key())
        );
        assert_eq!(read.expires_at_s, written.expires_at_s);
    }
}

#[test]
fn relays_that_do_not_fit_are_left_out_and_the_rest_still_holds() {
    let keys = Keys::generate();
    let relays: Vec<String> = (0..20)
        .map(|n| format!("wss://{n}.{}.example", "x".repeat(60)))
        .collect();
    let long = Invite {
        name: "n".repeat(64),
        relays: relays.clone(),
        ..invite(&keys)
    };
    let text = long.encode(&keys).unwrap();
    assert!(text.len() <= token::MAX_CHARS);
    let read = Invite::decode(&text, NOW_S).unwrap();
    assert!((1..=token::MAX_RELAYS).contains(&read.relays.len()));
    assert_eq!(read.relays[..], relays[..read.relays.len()]);
}

#[test]
fn each_fault_has_its_code() {
    let keys = Keys::generate();
    let text = invite(&keys).encode(&keys).unwrap();
    let swapped = |at: usize| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'q' { b'p' } else { b'q' };
        String::from_utf8(bytes).unwrap()
    };
    for at in [7, 40, text.len() - 1] {
        assert_eq!(code(&swapped(at)), "invite_checksum");
    }
    assert_eq!(code(&text[..text.len() - 1]), "invite_checksum");
    let (hrp, bytes) = bech32::decode(&text).unwrap();
    let old = bech32::encode::<Bech32>(Hrp::parse_unchecked("legion"), &bytes);
    if let Ok(old) = old {
        assert_eq!(code(&old), "invite_checksum", "bech32 is not bech32m");
    }
    assert_eq!(hrp.as_str(), "legion");
    let other = bech32::encode::<Bech32m>(Hrp::parse_unchecked("legio"), &bytes).unwrap();
    assert_eq!(code(&other), "invite_hrp");
    let npub = "npub1dms45mn60cyrn3nslql28sfhddezzu26xk2sdxdutn9wn6ztnh9qwqw67k";
    assert_eq!(code(npub), "invite_hrp");
    assert_eq!(code(&format!("{}q", "q".repeat(2_000))), "invite_too_long");
    assert_eq!(code("legion1"), "invite_checksum");
    for text in ["", "legion", "no invite", "legion1b0o", "Legion1QqQ"] {
        assert_eq!(code(text), "invite_malformed", "{text}");
    }
    assert_eq!(code(&changed(&text, |b| b[0] = 2)), "invite_version");
    assert_eq!(code(&changed(&text, |b| b[1] = 9)), "invite_malformed");
    assert_eq!(
        code(&changed(&text, |b| b.truncate(60))),
        "invite_malformed"
    );
    assert_eq!(code(&changed(&text, Vec::clear)), "invite_version");
    for at in [2, 34, 50, bytes.len() - 1] {
        let forged = changed(&text, |b| b[at] ^= 1);
        assert_eq!(code(&forged), "invite_signature", "byte {at}");
    }
    let late = Invite::decode(&text, NOW_S + 3_600).unwrap_err();
    assert_eq!(late.code(), "invite_expired");
}

#[test]
fn fields_that_its_author_signed_are_checked_all_the_same() {
    let keys = Keys::generate();
    let nameless = Invite {
        name: "a\nb".into(),
        ..invite(&keys)
    };
    assert_eq!(
        nameless.encode(&keys).unwrap_err().code(),
        "invite_malformed"
    );
    let unnumbered = Invite {
        epoch: 0,
        ..invite(&keys)
    };
    assert_eq!(code(&unnumbered.encode(&keys).unwrap()), "invite_malformed");
    // Signed, but with a field more than this version knows, or one less.
    for extra in [vec![0u8], vec![0u8; 40]] {
        let mut writer = Writer::new(Kind::Invite, &keys.public_key(), NOW_S + 1);
        writer.text("family");
        writer.bytes(&[7; 16]);
        writer.bytes(&1u32.to_be_bytes());
        writer.bytes(&[9; 32]);
        writer.bytes(&0u64.to_be_bytes());
        writer.relays(&[], 0);
        writer.bytes(&extra);
        assert_eq!(code(&writer.sign(&keys).unwrap()), "invite_malformed");
    }
    let mut short = Writer::new(Kind::Invite, &keys.public_key(), NOW_S + 1);
    short.text("family");
    assert_eq!(code(&short.sign(&keys).unwrap()), "invite_malformed");
}

#[test]
fn a_contact_is_no_invite_and_survives_its_own_text() {
    let keys = Keys::generate();
    let contact = Contact {
        nostr: keys.public_key(),
        expires_at_s: NOW_S + 60,
        lct: "lct:web4:agent:ada@attic#worker".into(),
        ed25519: [1; 32],
        x25519: [2; 32],
        libp2p: [3; 32],
        epoch: 0,
        sig_ed25519: [4; 64],
        sig_libp2p: [5; 64],
        relays: vec!["wss://a.example".into()],
        sigs_former: Vec::new(),
    };
    let text = contact.encode(&keys).unwrap();
    assert_eq!(Contact::decode(&text, NOW_S).unwrap(), contact);
    assert_eq!(code(&text), "invite_kind");
    let invite = invite(&keys).encode(&keys).unwrap();
    let refused = |text: &str, now_s| Contact::decode(text, now_s).unwrap_err().code();
    assert_eq!(refused(&invite, NOW_S), "contact_kind");
    assert_eq!(refused(&text, NOW_S + 60), "contact_expired");
    assert_eq!(
        refused(&changed(&text, |b| b[60] ^= 1), NOW_S),
        "contact_signature"
    );
}

#[test]
fn neither_debug_nor_an_error_shows_the_secret() {
    let keys = Keys::generate();
    let invite = invite(&keys);
    // As bytes and as hex, each longer than the inviter's key, which is drawn anew each time, could show by chance.
    let shown = format!("{invite:?}");
    assert!(!shown.contains("171, 171") && !shown.contains(&"ab".repeat(8)));
    let text = invite.encode(&keys).unwrap();
    let error = Invite::decode(&text[..text.len() - 1], NOW_S).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(&text[7..40]));
}
