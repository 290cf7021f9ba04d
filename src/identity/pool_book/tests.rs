//! Who was left out of a rotation is neither heard nor told anything once the grace is over; names and epochs are never mixed up.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use nostr::Keys;

use super::*;

const NOW_S: u64 = 1_795_219_200;

/// Two members of one pool, and the first one's key.
fn members() -> (PoolBook, PoolBook, PublicKey) {
    let me = Keys::generate().public_key();
    let (mut a, mut b) = (PoolBook::default(), PoolBook::default());
    a.create("family", me, vec!["wss://a.example".into()], NOW_S)
        .unwrap();
    let invite = a.invite("family", me, NOW_S + 60).unwrap();
    assert!(b.join(&invite, NOW_S).unwrap());
    assert!(!b.join(&invite, NOW_S).unwrap(), "the same invite again");
    (a, b, me)
}

fn epochs(book: &PoolBook) -> Vec<(u32, Option<u64>)> {
    let epochs = &book.get("family").unwrap().epochs;
    epochs.iter().map(|e| (e.number, e.until_s)).collect()
}

fn secret(book: &PoolBook) -> [u8; 32] {
    let pool = book.get("family").unwrap();
    *pool.current().unwrap().secret.as_bytes()
}

#[test]
fn a_rotation_reaches_who_is_invited_again_and_closes_for_all_at_one_time() {
    let (mut a, mut b, me) = members();
    assert_eq!(secret(&a), secret(&b));
    a.rotate("family", 100, NOW_S).unwrap();
    assert_ne!(secret(&a), secret(&b));
    let expected = [(1, Some(NOW_S + 100)), (2, None)];
    assert_eq!(epochs(&a), expected);
    assert!(
        b.join(&a.invite("family", me, NOW_S + 90).unwrap(), NOW_S + 50)
            .unwrap()
    );
    assert_eq!((epochs(&b), secret(&b)), (expected.to_vec(), secret(&a)));

    assert!(!a.prune(NOW_S + 100 + CLOSED_S - 1));
    assert!(a.prune(NOW_S + 100 + CLOSED_S));
    assert_eq!(epochs(&a), [(2, None)]);
}

#[test]
fn an_invite_can_only_raise_the_epoch_of_its_own_pool() {
    let (mut a, mut b, me) = members();
    let old = a.invite("family", me, NOW_S + 60).unwrap();
    let late = |book: &mut PoolBook, invite: &Invite| book.join(invite, NOW_S).unwrap_err().code();

    let mut other = PoolBook::default();
    other.create("family", me, Vec::new(), NOW_S).unwrap();
    other.rotate("family", 0, NOW_S).unwrap();
    let foreign = other.invite("family", me, NOW_S + 60).unwrap();
    assert_eq!(late(&mut a, &foreign), "pool_name_taken");
    assert_eq!(
        a.create("family", me, Vec::new(), NOW_S)
            .unwrap_err()
            .code(),
        "pool_name_taken"
    );

    a.rotate("family", 100, NOW_S).unwrap();
    assert_eq!(late(&mut a, &old), "invite_superseded");
    b.rotate("family", 100, NOW_S).unwrap();
    let rival = b.invite("family", me, NOW_S + 60).unwrap();
    assert_eq!(late(&mut a, &rival), "pool_epoch_taken");
    b.rotate("family", 100, NOW_S).unwrap();
    let healed = b.invite("family", me, NOW_S + 60).unwrap();
    assert!(a.join(&healed, NOW_S).unwrap());
    assert_eq!(secret(&a), secret(&b));
    assert_eq!(epochs(&a).last(), Some(&(3, None)));
}

#[test]
fn a_grace_never_grows_and_an_invite_cannot_ask_for_a_long_one() {
    let (mut a, mut b, me) = members();
    a.rotate("family", 100, NOW_S).unwrap();
    a.rotate("family", 500, NOW_S).unwrap();
    assert_eq!(
        epochs(&a),
        [(1, Some(NOW_S + 100)), (2, Some(NOW_S + 500)), (3, None)]
    );
    let endless = Invite {
        before_until_s: u64::MAX,
        ..a.invite("family", me, NOW_S + 60).unwrap()
    };
    b.join(&endless, NOW_S).unwrap();
    assert_eq!(epochs(&b), [(1, Some(NOW_S + GRACE_MAX_S)), (3, None)]);
    for _ in 0..10 {
        a.rotate("family", 500, NOW_S).unwrap();
    }
    assert_eq!(epochs(&a).len(), EPOCHS_MAX);
}

#[test]
fn pools_have_names_and_a_limit_and_are_forgotten_when_left() {
    let me = Keys::generate().public_key();
    let mut book = PoolBook::default();
    for name in ["", "  ", "a\tb", &"x".repeat(65)] {
        let refused = book.create(name, me, Vec::new(), NOW_S).unwrap_err();
        assert_eq!(refused.code(), "pool_name_invalid", "{name:?}");
    }
    for n in 0..POOLS_MAX {
        book.create(&n.to_string(), me, Vec::new(), NOW_S).unwrap();
    }
    let full = book.create("one more", me, Vec::new(), NOW_S).unwrap_err();
    assert_eq!(full.code(), "pools_too_many");
    let invite = book.invite("0", me, NOW_S + 1).unwrap();
    book.leave("0").unwrap();
    for refused in [
        book.leave("0").unwrap_err(),
        book.invite("0", me, NOW_S).unwrap_err(),
        book.rotate("0", 0, NOW_S).unwrap_err(),
    ] {
        assert_eq!(refused.code(), "pool_unknown");
    }
    assert!(book.join(&invite, NOW_S).unwrap());
}
