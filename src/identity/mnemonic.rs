//! The seed words (BIP-39, English): the one secret a person writes down. It must not know what is derived from it, nor
//! where it is kept.

use nostr::bip39;
use zeroize::{Zeroize, Zeroizing};

use super::error::IdentityError;

/// 16 bytes of entropy give 12 words.
const ENTROPY_BYTES: usize = 16;

/// A checked mnemonic of 12, 15, 18, 21 or 24 words. Erased from memory when dropped; has no `Debug`.
pub struct Mnemonic {
    /// Normalised: lower case, one space between words.
    phrase: Zeroizing<String>,
}

impl Mnemonic {
    /// Twelve new words from the operating system's random source. Fails with `entropy_unavailable`.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut entropy = Zeroizing::new([0u8; ENTROPY_BYTES]);
        getrandom::fill(entropy.as_mut_slice()).map_err(IdentityError::EntropyUnavailable)?;
        let words = bip39::Mnemonic::from_entropy(entropy.as_slice()).map_err(refused)?;
        Ok(Self {
            phrase: joined(&words),
        })
    }

    /// Reads words that a person typed or a file holds: any case, any spacing. Fails with `mnemonic_invalid`, naming the
    /// position of an unknown word, never the word.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let lower = Zeroizing::new(text.to_lowercase());
        let words = bip39::Mnemonic::parse_in_normalized(bip39::Language::English, lower.trim())
            .map_err(refused)?;
        Ok(Self {
            phrase: joined(&words),
        })
    }

    /// The words, one space between them. For the terminal, a file that the owner named, and derivation; nothing else.
    pub fn phrase(&self) -> &str {
        &self.phrase
    }

    /// The 64-byte BIP-39 seed, with an empty BIP-39 passphrase as NIP-06 has it.
    pub(crate) fn seed(&self) -> Result<Zeroizing<[u8; 64]>, IdentityError> {
        let words = bip39::Mnemonic::parse_in_normalized(bip39::Language::English, &self.phrase)
            .map_err(refused)?;
        let mut seed = words.to_seed_normalized("");
        let kept = Zeroizing::new(seed);
        seed.zeroize();
        Ok(kept)
    }
}

fn joined(words: &bip39::Mnemonic) -> Zeroizing<String> {
    // The capacity is set first: growing would leave unerased copies behind.
    let mut phrase = Zeroizing::new(String::with_capacity(24 * 9));
    for word in words.words() {
        if !phrase.is_empty() {
            phrase.push(' ');
        }
        phrase.push_str(word);
    }
    phrase
}

fn refused(error: bip39::Error) -> IdentityError {
    IdentityError::MnemonicInvalid(match error {
        bip39::Error::BadWordCount(count) => {
            format!("there are {count} words; 12, 15, 18, 21 or 24 are needed")
        }
        bip39::Error::UnknownWord(index) => {
            format!("word {} is not in the BIP-39 English list", index + 1)
        }
        bip39::Error::InvalidChecksum => "the checksum does not fit".to_owned(),
        _ => "this is not BIP-39 English".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// The first vector of BIP-39's English list: entropy of 16 zero bytes.
    const ZERO: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

    #[test]
    fn new_words_are_twelve_and_never_the_same() {
        let (a, b) = (Mnemonic::generate().unwrap(), Mnemonic::generate().unwrap());
        assert_eq!(a.phrase().split(' ').count(), 12);
        assert_ne!(a.phrase(), b.phrase());
        assert_eq!(Mnemonic::parse(a.phrase()).unwrap().phrase(), a.phrase());
    }

    #[test]
    fn typed_words_are_read_in_any_case_and_spacing() {
        let typed = format!("\n  {}  \n", ZERO.to_uppercase().replace(' ', "   "));
        assert_eq!(Mnemonic::parse(&typed).unwrap().phrase(), ZERO);
    }

    #[test]
    fn wrong_words_are_refused_without_being_repeated() {
        let cases = [
            ("abandon about".to_owned(), "2 words"),
            (ZERO.replace("about", "hunter2"), "word 12"),
            (ZERO.replace("about", "abandon"), "checksum"),
        ];
        for (text, says) in cases {
            let error = Mnemonic::parse(&text).err().unwrap();
            assert_eq!(error.code(), "mnemonic_invalid");
            assert!(error.to_string().contains(says), "{error}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }
}
