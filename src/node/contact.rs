//! Contacts: the text by which this node is introduced to another's owner, and what such a text of another node says. It must not
//! decide what trust follows: that is the owner's command.

use libp2p_identity::ed25519;
use serde_json::{Value, json};

use super::error::NodeError;
use super::start::BINDING_S;
use crate::domain::step::Introduction;
use crate::identity::contact::Contact;
use crate::identity::error::{Fault, IdentityError};
use crate::identity::keys::peer_id_ed25519;
use crate::identity::token::{self, Kind};
use crate::identity::{Identity, Lct};
use crate::wire::binding::{Binding, BindingError, Statement};

/// `{contact,npub,lct,relays,expires_ms}` of this node. `now_s` is Unix seconds.
///
/// # Errors
/// Codes of the identity room and of bindings.
pub(super) fn show(
    identity: &Identity,
    relays: Vec<String>,
    now_s: u64,
) -> Result<Value, NodeError> {
    let binding = Binding::sign_lasting(identity, now_s + BINDING_S)?;
    let statement = &binding.statement;
    let peer_id = statement.peer_id.parse().ok();
    let public = identity.public();
    let contact = Contact {
        nostr: identity.nostr().public_key(),
        expires_at_s: statement.not_after,
        lct: public.lct.to_string(),
        ed25519: fixed(&statement.ed25519)?,
        x25519: fixed(&statement.x25519)?,
        libp2p: peer_id
            .and_then(|id| peer_id_ed25519(&id))
            .ok_or(BindingError::Malformed("peer_id"))?,
        epoch: statement.epoch,
        sig_ed25519: fixed(&binding.sig_ed25519)?,
        sig_libp2p: fixed(&binding.sig_libp2p)?,
        relays,
        sigs_former: sigs_former(&binding)?,
    };
    let text = contact.encode(identity.nostr())?;
    // What the text holds counts, not what was wished: relays that did not fit are not in it.
    let told = Contact::decode(&text, now_s)?;
    Ok(json!({
        "contact": text, "npub": public.npub, "lct": told.lct, "relays": told.relays,
        "expires_ms": told.expires_at_s.saturating_mul(1000),
    }))
}

/// Who a contact introduces; none for a text that is no contact, such as an npub. `now_s` is Unix seconds.
///
/// # Errors
/// `contact_*` for a text that is damaged, forged or over; codes of bindings for keys that did not sign.
pub(super) fn read(text: &str, now_s: u64) -> Result<Option<Introduction>, NodeError> {
    if !token::looks_like(text) {
        return Ok(None);
    }
    let contact = Contact::decode(text, now_s)?;
    let malformed = || IdentityError::TokenInvalid {
        kind: Kind::Contact,
        fault: Fault::Malformed,
    };
    let lct: Lct = contact.lct.parse().map_err(|_| malformed())?;
    let libp2p = ed25519::PublicKey::try_from_bytes(&contact.libp2p).map_err(|_| malformed())?;
    let mut former = contact.sigs_former.iter().map(hex::encode);
    let binding = Binding {
        statement: Statement {
            v: 1,
            object_type: "binding".to_owned(),
            nostr: contact.nostr.to_hex(),
            ed25519: hex::encode(contact.ed25519),
            x25519: hex::encode(contact.x25519),
            peer_id: libp2p_identity::PublicKey::from(libp2p)
                .to_peer_id()
                .to_base58(),
            epoch: contact.epoch,
            not_after: contact.expires_at_s,
        },
        sig_ed25519: hex::encode(contact.sig_ed25519),
        sig_libp2p: hex::encode(contact.sig_libp2p),
        sig_previous: former.next(),
        sig_earlier: former.collect(),
    };
    let keys = binding.verify(&contact.nostr, now_s)?;
    Ok(Some(Introduction {
        npub: contact.nostr.to_hex(),
        lct: lct.to_string(),
        relays: contact.relays,
        keys,
        binding,
    }))
}

/// A reader has met the node under one of its earlier epochs: most likely under the last, or before it was ever restored.
fn sigs_former(binding: &Binding) -> Result<Vec<[u8; 64]>, BindingError> {
    let (first, between) = match binding.sig_earlier.split_last() {
        Some((first, between)) => (Some(first), between),
        None => (None, &[][..]),
    };
    let all = binding.sig_previous.iter().chain(first).chain(between);
    all.map(|signature| fixed(signature)).collect()
}

fn fixed<const N: usize>(text: &str) -> Result<[u8; N], BindingError> {
    let mut bytes = [0u8; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| BindingError::Malformed("binding"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    //! A contact ties the keys of who made it, and nobody can put other keys under a name.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::identity::Mnemonic;

    const NOW_S: u64 = 1_795_219_200;

    fn identity() -> Identity {
        let words = Mnemonic::generate().unwrap();
        Identity::derive(&words, Lct::new("ada", "attic", "worker").unwrap(), 0).unwrap()
    }

    fn text(identity: &Identity) -> String {
        let shown = show(identity, vec!["wss://a.example".into()], NOW_S).unwrap();
        shown["contact"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_contact_introduces_its_author() {
        let ada = identity();
        let known = read(&text(&ada), NOW_S).unwrap().unwrap();
        assert_eq!(known.npub, ada.public().nostr);
        assert_eq!(hex::encode(known.keys.ed25519), ada.public().ed25519);
        assert_eq!(known.keys.peer_id, ada.public().peer_id);
        assert_eq!(
            (known.lct.as_str(), known.relays),
            (
                "lct:web4:agent:ada@attic#worker",
                vec!["wss://a.example".to_owned()]
            )
        );
        assert!(read(&ada.public().npub, NOW_S).unwrap().is_none());
        assert!(read("", NOW_S).unwrap().is_none());
    }

    /// The owner's node at this epoch, as a reader knows it.
    fn restored<const N: usize>(epochs: [u32; N], lct: &str) -> [Identity; N] {
        let words = Mnemonic::generate().unwrap();
        epochs.map(|epoch| Identity::derive(&words, lct.parse().unwrap(), epoch).unwrap())
    }

    #[test]
    fn a_restored_node_is_known_again_by_its_contact() {
        let relays: Vec<String> = (0..9)
            .map(|n| format!("wss://relay{n}.example.org"))
            .collect();
        let long = "n".repeat(64);
        let name = format!("lct:web4:agent:{long}@{long}#{long}");
        for (lct, knows, least_relays) in [
            ("lct:web4:agent:ada@attic#worker", &[0, 5][..], 3),
            // What a person chose as a name comes first, and somewhere to be reached second.
            (&name, &[][..], 1),
        ] {
            let [zeroth, fourth, fifth, sixth] = restored([0, 4, 5, 6], lct);
            let shown = show(&sixth, relays.clone(), NOW_S).unwrap();
            let text = shown["contact"].as_str().unwrap();
            assert!(text.len() <= token::MAX_CHARS);
            assert!(shown["relays"].as_array().unwrap().len() >= least_relays);
            let known = read(text, NOW_S).unwrap().unwrap();
            for met in [&zeroth, &fourth, &fifth] {
                let author = met.nostr().public_key();
                let before = Binding::sign(met, NOW_S + 60, None).unwrap();
                let before = before.verify(&author, NOW_S).unwrap();
                let taken = known.binding.succeeds(&before, NOW_S);
                let epoch = met.public().epoch;
                assert_eq!(taken.is_ok(), knows.contains(&epoch), "{lct} {epoch}");
            }
        }
        // With one relay there is room for more of them.
        let [fourth, sixth] = restored([4, 6], "lct:web4:agent:ada@attic#worker");
        let shown = show(&sixth, relays[..1].to_vec(), NOW_S).unwrap();
        let known = read(shown["contact"].as_str().unwrap(), NOW_S);
        let before = Binding::sign(&fourth, NOW_S + 60, None).unwrap();
        let before = before.verify(&fourth.nostr().public_key(), NOW_S).unwrap();
        assert!(
            known
                .unwrap()
                .unwrap()
                .binding
                .succeeds(&before, NOW_S)
                .is_ok()
        );
    }

    #[test]
    fn a_contact_of_the_older_form_is_still_read() {
        let [fourth] = restored([4], "lct:web4:agent:ada@attic#worker");
        let mut older = Contact::decode(&text(&fourth), NOW_S).unwrap();
        assert_eq!(older.sigs_former.len(), 3);
        older.sigs_former.clear();
        let older = older.encode(fourth.nostr()).unwrap();
        let known = read(&older, NOW_S).unwrap().unwrap();
        assert_eq!((known.keys.epoch, known.binding.sig_previous), (4, None));
        // Of the first epoch there is only the one form.
        let ada = identity();
        let first = Contact::decode(&text(&ada), NOW_S).unwrap();
        assert!(first.sigs_former.is_empty());
        assert!(older.len() < text(&fourth).len() && text(&ada).len() == older.len());
    }

    #[test]
    fn another_s_keys_under_one_s_own_name_are_refused() {
        let (ada, eve) = (identity(), identity());
        let mut stolen = Contact::decode(&text(&ada), NOW_S).unwrap();
        stolen.nostr = eve.nostr().public_key();
        let stolen = stolen.encode(eve.nostr()).unwrap();
        assert_eq!(
            read(&stolen, NOW_S).unwrap_err().code(),
            "binding_signature"
        );
        let mut nameless = Contact::decode(&text(&ada), NOW_S).unwrap();
        nameless.lct = "\u{1b}[2J".into();
        let nameless = nameless.encode(ada.nostr()).unwrap();
        assert_eq!(
            read(&nameless, NOW_S).unwrap_err().code(),
            "contact_malformed"
        );
        let late = read(&text(&ada), NOW_S + BINDING_S).unwrap_err();
        assert_eq!(late.code(), "contact_expired");
    }
}
