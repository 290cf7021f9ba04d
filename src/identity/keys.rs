//! All keys of one node, derived from its seed, and the public half that others may see. Derivation only gives keys; what binds
//! them to each other for a stranger is the signed statement in `wire::binding`. It must not know about files or messages.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use libp2p_identity::PeerId;
use nostr::nips::nip06::FromMnemonic;
use nostr::{Keys, PublicKey, SecretKey, ToBech32};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::error::IdentityError;
use super::lct::Lct;
use super::mnemonic::Mnemonic;

/// HKDF salt of everything derived from a seed. Changing any of these labels changes every identity: never do.
const ROOT_SALT: &[u8] = b"legion/v1/root";
const PROOF_LABEL: &[u8] = b"ed25519/proof";
const LIBP2P_LABEL: &[u8] = b"ed25519/libp2p";
const SEAL_LABEL: &[u8] = b"x25519/seal";
const REPLY_LABEL: &[u8] = b"nostr/reply";
const POOLS_LABEL: &[u8] = b"chacha20poly1305/pools";
/// Highest epoch: the keys of every earlier one are derived at each start.
pub const EPOCH_MAX: u32 = 1_024;

/// The secret keys of a node. Not `Clone`, not `Serialize`; `Debug` shows the name and the npub only.
pub struct Identity {
    nostr: Keys,
    proof: SigningKey,
    /// Proof keys of the epochs before, oldest first.
    former: Vec<SigningKey>,
    libp2p: libp2p_identity::Keypair,
    seal: StaticSecret,
    reply_root: Zeroizing<[u8; 32]>,
    pools_key: Zeroizing<[u8; 32]>,
    public: PublicIdentity,
}

/// What a node tells everyone about itself: `public.json` beside the key file. Keys are lower-case hex, 32 bytes each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicIdentity {
    /// The Nostr key in bech32 (NIP-19).
    pub npub: String,
    /// The Nostr key, x-only secp256k1.
    pub nostr: String,
    /// The Ed25519 key that signs proofs and receipts.
    pub ed25519: String,
    /// The X25519 key that payloads are sealed to.
    pub x25519: String,
    /// The libp2p peer id (base58, identity multihash of an Ed25519 key).
    pub peer_id: String,
    /// The name.
    pub lct: Lct,
    /// Counts rotations of the Ed25519 and X25519 keys, from 0.
    pub epoch: u32,
    /// The signed statement that binds the keys (`wire::binding::Binding` as JSON), once it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<serde_json::Value>,
}

/// What `legion id --json` prints: exactly these fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdFields {
    /// See [`PublicIdentity::npub`].
    pub npub: String,
    /// See [`PublicIdentity::nostr`].
    pub nostr: String,
    /// See [`PublicIdentity::ed25519`].
    pub ed25519: String,
    /// See [`PublicIdentity::x25519`].
    pub x25519: String,
    /// See [`PublicIdentity::peer_id`].
    pub peer_id: String,
    /// See [`PublicIdentity::lct`].
    pub lct: Lct,
}

impl PublicIdentity {
    /// The Nostr key as a type. Fails with `sealing_failed` when the text is not a key.
    pub fn nostr_key(&self) -> Result<PublicKey, IdentityError> {
        PublicKey::from_hex(&self.nostr)
            .map_err(|_| IdentityError::SealingFailed("not a Nostr key"))
    }

    /// The fields that `legion id` shows.
    pub fn id_fields(&self) -> IdFields {
        IdFields {
            npub: self.npub.clone(),
            nostr: self.nostr.clone(),
            ed25519: self.ed25519.clone(),
            x25519: self.x25519.clone(),
            peer_id: self.peer_id.clone(),
            lct: self.lct.clone(),
        }
    }
}

impl Identity {
    /// Derives every key of this name and epoch from the seed words. The Nostr key is NIP-06's account 0 whatever the epoch.
    /// Takes some milliseconds (PBKDF2). Fails with `derivation_failed`.
    pub fn derive(mnemonic: &Mnemonic, lct: Lct, epoch: u32) -> Result<Self, IdentityError> {
        if epoch > EPOCH_MAX {
            return Err(IdentityError::DerivationFailed("the epoch is out of range"));
        }
        let nostr = Keys::from_mnemonic(mnemonic.phrase(), None)
            .map_err(|_| IdentityError::DerivationFailed("NIP-06 gave no key"))?;
        let seed = mnemonic.seed()?;
        let root = Hkdf::<Sha256>::new(Some(ROOT_SALT), seed.as_slice());
        let proof = SigningKey::from_bytes(&*expand(&root, PROOF_LABEL, &epoch.to_be_bytes())?);
        let former = (0..epoch)
            .map(|epoch| {
                let bytes = expand(&root, PROOF_LABEL, &epoch.to_be_bytes())?;
                Ok(SigningKey::from_bytes(&bytes))
            })
            .collect::<Result<Vec<_>, IdentityError>>()?;
        let mut libp2p_bytes = expand(&root, LIBP2P_LABEL, &epoch.to_be_bytes())?;
        let libp2p = libp2p_identity::Keypair::ed25519_from_bytes(libp2p_bytes.as_mut_slice())
            .map_err(|_| IdentityError::DerivationFailed("libp2p refused the key"))?;
        let seal = StaticSecret::from(*expand(&root, SEAL_LABEL, &epoch.to_be_bytes())?);
        // Without the epoch: a job that is under way must find its reply key after a rotation.
        let reply_root = expand(&root, REPLY_LABEL, &[])?;
        // Without it too: the file with the pools' secrets outlives a rotation.
        let pools_key = expand(&root, POOLS_LABEL, &[])?;
        let public = PublicIdentity {
            npub: npub(&nostr.public_key())?,
            nostr: nostr.public_key().to_hex(),
            ed25519: hex::encode(proof.verifying_key().as_bytes()),
            x25519: hex::encode(x25519_dalek::PublicKey::from(&seal).as_bytes()),
            peer_id: libp2p.public().to_peer_id().to_base58(),
            lct,
            epoch,
            binding: None,
        };
        Ok(Self {
            nostr,
            proof,
            former,
            libp2p,
            seal,
            reply_root,
            pools_key,
            public,
        })
    }

    /// The Nostr keys: author of seals, owner of the main inbox.
    pub fn nostr(&self) -> &Keys {
        &self.nostr
    }

    /// The public half.
    pub fn public(&self) -> &PublicIdentity {
        &self.public
    }

    /// Signs with the proof key (Ed25519, RFC 8032). Pass bytes made by `wire::canonical::signing_bytes`, which carry a domain.
    pub fn sign_proof(&self, message: &[u8]) -> [u8; 64] {
        self.proof.sign(message).to_bytes()
    }

    /// Signs with the proof key of `key` (hex), of this epoch or an earlier one; none if it is no key of ours. What was stated
    /// under an earlier epoch is repeated under its key, and nothing new is.
    pub fn sign_proof_as(&self, key: &str, message: &[u8]) -> Option<[u8; 64]> {
        let ours = self.former.iter().chain([&self.proof]);
        let mut fits = ours.filter(|k| hex::encode(k.verifying_key().as_bytes()) == key);
        fits.next().map(|k| k.sign(message).to_bytes())
    }

    /// Every proof key of ours so far, hex, the oldest first.
    pub fn proof_keys(&self) -> Vec<String> {
        let ours = self.former.iter().chain([&self.proof]);
        ours.map(|k| hex::encode(k.verifying_key().as_bytes()))
            .collect()
    }

    /// Signs with the proof key of every earlier epoch: for whoever knows one of them.
    pub fn sign_formerly(&self, message: &[u8]) -> Vec<[u8; 64]> {
        let former = self.former.iter();
        former.map(|k| k.sign(message).to_bytes()).collect()
    }

    /// Signs with the libp2p key (Ed25519), to show that the peer id is ours.
    pub fn sign_libp2p(&self, message: &[u8]) -> Result<[u8; 64], IdentityError> {
        let refused = || IdentityError::DerivationFailed("libp2p gave no Ed25519 signature");
        let bytes = self.libp2p.sign(message).map_err(|_| refused())?;
        bytes.try_into().map_err(|_| refused())
    }

    /// The libp2p key pair, for the swarm.
    pub fn libp2p(&self) -> &libp2p_identity::Keypair {
        &self.libp2p
    }

    /// The X25519 secret that opens payloads sealed to us.
    pub fn seal_secret(&self) -> &StaticSecret {
        &self.seal
    }

    /// The one-time Nostr keys on which the answers to one of our tasks arrive. The same task gives the same keys, so they need
    /// no storage and survive a crash between derivation and offer.
    pub fn reply_key(&self, task_id: &str) -> Result<Keys, IdentityError> {
        let root = Hkdf::<Sha256>::from_prk(self.reply_root.as_slice())
            .map_err(|_| IdentityError::DerivationFailed("the reply root is too short"))?;
        nostr_keys(&root, b"task", task_id.as_bytes())
    }

    /// What the file with the pools' secrets is encrypted with: who has the words can open it, nobody else.
    pub(crate) fn pools_key(&self) -> &[u8; 32] {
        &self.pools_key
    }

    pub(crate) fn set_binding(&mut self, binding: Option<serde_json::Value>) {
        self.public.binding = binding;
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("lct", &self.public.lct.to_string())
            .field("npub", &self.public.npub)
            .finish_non_exhaustive()
    }
}

/// Checks an Ed25519 signature strictly: small-order keys and non-canonical encodings are refused, so that nobody can make
/// one signature that fits two messages. About 75 microseconds.
pub fn verify_ed25519(public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(public_key).is_ok_and(|key| {
        key.verify_strict(message, &Signature::from_bytes(signature))
            .is_ok()
    })
}

/// The Ed25519 key inside a peer id; `None` for a peer id of another key type, or one that is only a hash.
pub fn peer_id_ed25519(peer_id: &PeerId) -> Option<[u8; 32]> {
    let multihash = peer_id.as_ref();
    // Code 0 is the identity multihash: its digest is the protobuf-encoded public key itself.
    if multihash.code() != 0 {
        return None;
    }
    let key = libp2p_identity::PublicKey::try_decode_protobuf(multihash.digest()).ok()?;
    key.try_into_ed25519().ok().map(|key| key.to_bytes())
}

fn npub(key: &PublicKey) -> Result<String, IdentityError> {
    key.to_bech32()
        .map_err(|_| IdentityError::DerivationFailed("bech32"))
}

/// HKDF-Expand with info = label | context. Labels hold no zero-length ambiguity: contexts are of fixed size or come last.
fn expand(
    root: &Hkdf<Sha256>,
    label: &[u8],
    context: &[u8],
) -> Result<Zeroizing<[u8; 32]>, IdentityError> {
    let mut key = Zeroizing::new([0u8; 32]);
    let mut info = Vec::with_capacity(label.len() + 1 + context.len());
    info.extend_from_slice(label);
    info.push(0);
    info.extend_from_slice(context);
    root.expand(&info, key.as_mut_slice())
        .map_err(|_| IdentityError::DerivationFailed("HKDF"))?;
    Ok(key)
}

/// Nostr keys by label and context. One value in 2^128 is no secp256k1 scalar; then the next counter is taken.
pub(crate) fn nostr_keys(
    root: &Hkdf<Sha256>,
    label: &[u8],
    context: &[u8],
) -> Result<Keys, IdentityError> {
    for counter in 0u8..4 {
        let mut counted = Vec::with_capacity(1 + context.len());
        counted.push(counter);
        counted.extend_from_slice(context);
        if let Ok(secret) = SecretKey::from_slice(expand(root, label, &counted)?.as_slice()) {
            return Ok(Keys::new(secret));
        }
    }
    Err(IdentityError::DerivationFailed(
        "no scalar in four attempts",
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const NIP06: &str = include_str!("../../fixtures/identity/nip06.json");

    fn lct() -> Lct {
        Lct::new("ada", "attic", "worker").unwrap()
    }

    fn vector(index: usize) -> serde_json::Value {
        serde_json::from_str::<serde_json::Value>(NIP06).unwrap()[index].clone()
    }

    fn identity(index: usize, epoch: u32) -> Identity {
        let words = Mnemonic::parse(vector(index)["mnemonic"].as_str().unwrap()).unwrap();
        Identity::derive(&words, lct(), epoch).unwrap()
    }

    #[test]
    fn the_nostr_key_is_nip06() {
        for index in 0..2 {
            let identity = identity(index, 0);
            let expected = vector(index);
            assert_eq!(
                identity.nostr().secret_key().to_secret_hex(),
                expected["secret"].as_str().unwrap()
            );
            assert_eq!(identity.public().nostr, expected["nostr"].as_str().unwrap());
            assert_eq!(identity.public().npub, expected["npub"].as_str().unwrap());
        }
    }

    #[test]
    fn one_seed_always_gives_the_same_keys_and_all_differ() {
        let (a, again, rotated, other) = (
            identity(0, 0),
            identity(0, 0),
            identity(0, 1),
            identity(1, 0),
        );
        assert_eq!(a.public(), again.public());
        assert_eq!(
            a.reply_key("t1").unwrap().public_key(),
            again.reply_key("t1").unwrap().public_key()
        );
        assert_ne!(
            a.reply_key("t1").unwrap().public_key(),
            a.reply_key("t2").unwrap().public_key()
        );
        assert_ne!(
            a.reply_key("t1").unwrap().public_key(),
            other.reply_key("t1").unwrap().public_key()
        );
        assert_ne!(a.public().ed25519, a.public().x25519);
        let peer: PeerId = a.public().peer_id.parse().unwrap();
        assert_ne!(
            hex::encode(peer_id_ed25519(&peer).unwrap()),
            a.public().ed25519
        );
        // A rotation changes the derived keys, never the Nostr key nor the inbox of a task under way.
        assert_eq!(a.public().nostr, rotated.public().nostr);
        assert_ne!(a.public().ed25519, rotated.public().ed25519);
        assert_ne!(a.public().x25519, rotated.public().x25519);
        assert_ne!(a.public().peer_id, rotated.public().peer_id);
        assert_eq!(
            a.reply_key("t1").unwrap().public_key(),
            rotated.reply_key("t1").unwrap().public_key()
        );
    }

    #[test]
    fn the_derived_keys_never_change_between_versions() {
        let derived = &vector(0)["derived"];
        let identity = identity(0, 0);
        assert_eq!(
            identity.public().ed25519,
            derived["ed25519"].as_str().unwrap()
        );
        assert_eq!(
            identity.public().x25519,
            derived["x25519"].as_str().unwrap()
        );
        assert_eq!(
            identity.public().peer_id,
            derived["peer_id"].as_str().unwrap()
        );
        assert_eq!(
            identity.reply_key("t1").unwrap().public_key().to_hex(),
            derived["reply_t1"].as_str().unwrap()
        );
    }

    /// libp2p/specs, peer-ids.md, "Test vectors": the Ed25519 key pair in protobuf.
    #[test]
    fn peer_ids_follow_the_libp2p_specification() {
        let private = hex::decode("080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e").unwrap();
        let public =
            hex::decode("080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
                .unwrap();
        let mut secret = private[4..36].to_vec();
        let pair = libp2p_identity::Keypair::ed25519_from_bytes(&mut secret).unwrap();
        assert_eq!(pair.public().encode_protobuf(), public);
        let peer = pair.public().to_peer_id();
        // Identity multihash: code 0, length 36, then the protobuf.
        assert_eq!(peer.to_bytes(), [&[0u8, 36][..], &public].concat());
        assert_eq!(peer_id_ed25519(&peer).unwrap().as_slice(), &public[4..]);
    }

    #[test]
    fn signatures_are_checked_strictly() {
        let identity = identity(0, 0);
        let key: [u8; 32] = hex::decode(&identity.public().ed25519)
            .unwrap()
            .try_into()
            .unwrap();
        let mut signature = identity.sign_proof(b"message");
        assert!(verify_ed25519(&key, b"message", &signature));
        assert!(!verify_ed25519(&key, b"massage", &signature));
        signature[40] ^= 1;
        assert!(!verify_ed25519(&key, b"message", &signature));
        // The identity point as key, and R = identity with s = 0, would verify for every message without the strict check.
        let mut point = [0u8; 32];
        point[0] = 1;
        let mut forged = [0u8; 64];
        forged[0] = 1;
        assert!(!verify_ed25519(&point, b"anything", &forged));
    }

    #[test]
    fn debug_shows_no_secret() {
        let identity = identity(0, 0);
        let shown = format!(
            "{identity:?} {:?} {:?}",
            identity.nostr(),
            identity.libp2p()
        );
        let secret = identity.nostr().secret_key().to_secret_hex();
        assert!(shown.contains(&identity.public().npub));
        assert!(!shown.contains(&secret));
        assert!(!shown.contains(&hex::encode(identity.seal_secret().as_bytes())));
        assert!(!shown.contains(&hex::encode(identity.reply_root.as_slice())));
        assert!(!shown.contains("monkey"));
    }

    #[test]
    fn id_has_exactly_its_six_fields() {
        let json = serde_json::to_value(identity(0, 0).public().id_fields()).unwrap();
        let mut names: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["ed25519", "lct", "nostr", "npub", "peer_id", "x25519"]
        );
    }
}
