//! How large, how far in time and where to a well-formed message may be. A type says what a field is, this says what is absurd:
//! a thousand skills, a task id with a path in it, an offer that stands until the year 285,000 and would be remembered as long,
//! an "inbox relay" that is really the router of the reader's own home. It must not know who sent the message: what a stranger
//! may not say, a friend has no reason to say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nostr::RelayUrl;
use nostr::types::url::Host;

use super::canonical::MAX_INTEGER;
use super::entry::{Act, Entry};
use super::log;
use super::market::LINK_BYTES;
use super::message::{Body, MessageError, News};
use super::proof::{Evidence, Hop, Proof};
use super::transfer;

/// Longest text that names something: a skill, a device, a method, a context.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest text meant for a person; what is longer is cut.
pub const MAX_TEXT_CHARS: usize = 500;
/// Longest part of an evidence, bytes.
pub const MAX_EVIDENCE_BYTES: usize = 8_192;
/// Most heads that an entry names: one per author, and a task has no more awards than that.
pub const MAX_HEADS: usize = 128;
/// Most skills in an ad.
pub const MAX_SKILLS: usize = 64;
/// Most inbox relays that a message names; further ones are not kept.
pub const MAX_RELAYS: usize = 8;
/// Longest relay address, bytes.
pub const MAX_RELAY_BYTES: usize = 255;
/// How long an ad or an offer may hold.
pub const MAX_NOTICE_MS: u64 = 24 * 3_600_000;
/// How far ahead a time in an award may lie.
pub const MAX_TERM_MS: u64 = 400 * 24 * 3_600_000;
/// Longest chain of jobs that are parts of each other, whatever the owner's limit is.
pub const MAX_CHAIN: usize = 16;
/// Most parts of one job that others did.
pub const MAX_HOPS: usize = 64;
/// A task id: 128 random bits.
const TASK_HEX_DIGITS: usize = 32;
/// A key or a SHA-256.
const HASH_HEX_DIGITS: usize = 64;

/// Whether every field is within reason; `now_ms` is Unix milliseconds.
///
/// # Errors
/// `bounds_exceeded`, naming the first field that is not.
pub fn check(body: &Body, now_ms: u64) -> Result<(), MessageError> {
    if let Some(entry) = body.entry() {
        within("entry", entry_is_sane(entry))?;
    }
    let detached = transfer::detached(body);
    within("detached", detached.is_none_or(transfer::Detached::is_sane))?;
    let by = |at_ms: u64, most_ms: u64| at_ms <= now_ms.saturating_add(most_ms);
    match body {
        Body::Ad(ad) => {
            within("lct", name(&ad.lct))?;
            within("skills", ad.skills.len() <= MAX_SKILLS)?;
            let sane = |id: &str, price| name(id) && price < MAX_INTEGER;
            within(
                "skills",
                (ad.skills.iter()).all(|s| sane(&s.id, s.unit_price_mc.max(s.hops_mc))),
            )?;
            within("expires_ms", by(ad.expires_ms, MAX_NOTICE_MS))
        }
        Body::Offer(offer) => {
            within("task", task(&offer.task))?;
            within("skill", name(&offer.skill))?;
            within("verification", name(&offer.verification))?;
            within("commitment", name(&offer.commitment))?;
            within("reply", name(&offer.reply))?;
            within("via", chain(&offer.via))?;
            within("model", offer.model.as_deref().is_none_or(name))?;
            within("max_price_mc", offer.max_price_mc < MAX_INTEGER)?;
            within("output_bytes_max", offer.output_bytes_max < MAX_INTEGER)?;
            within("input_bytes_max", offer.input_bytes_max < MAX_INTEGER)?;
            within("result_by_ms", by(offer.result_by_ms, MAX_TERM_MS))?;
            within("expires_ms", by(offer.expires_ms, MAX_NOTICE_MS))
        }
        Body::Withdraw(withdraw) => within("task", task(&withdraw.task)),
        Body::Bid(bid) => {
            within("task", task(&bid.task))?;
            within("device", name(&bid.device) && name(&bid.lct))?;
            let amounts = [bid.total_mc, bid.unit_price_mc, bid.hops_mc, bid.eta_ms];
            within("total_mc", amounts.iter().all(|n| *n < MAX_INTEGER))?;
            within("expires_ms", by(bid.expires_ms, MAX_TERM_MS))
        }
        Body::Decline(decline) => {
            within("task", task(&decline.task))?;
            within("code", name(&decline.code))?;
            within(
                "retry_at_ms",
                decline.retry_at_ms.is_none_or(|at| by(at, MAX_TERM_MS)),
            )
        }
        Body::Award(award) | Body::Request(award) => {
            within("task", task(&award.task))?;
            let names = [&award.context, &award.skill, &award.salt, &award.commitment];
            within("context", names.iter().all(|n| name(n)))?;
            let words = [&award.on_cancel, &award.verification, &award.lct];
            within("verification", words.iter().all(|n| name(n)))?;
            within("via", chain(&award.via))?;
            let prices = [
                award.max_price_mc,
                award.hops_mc,
                award.unit_price_mc.unwrap_or(0),
            ];
            within("max_price_mc", prices.iter().all(|n| *n < MAX_INTEGER))?;
            let times = [award.accept_by_ms, award.result_by_ms, award.settle_by_ms];
            within("settle_by_ms", times.iter().all(|at| by(*at, MAX_TERM_MS)))?;
            let spans = [
                award.lease_ttl_ms,
                award.max_hibernate_s.saturating_mul(1_000),
            ];
            within("lease_ttl_ms", spans.iter().all(|ms| *ms <= MAX_TERM_MS))
        }
        Body::Accept(accept) => {
            within("task", task(&accept.task))?;
            within("lct", name(&accept.lct))?;
            let amounts = [accept.total_mc, accept.unit_price_mc, accept.hops_mc];
            within("total_mc", amounts.iter().all(|n| *n < MAX_INTEGER))
        }
        Body::Update(update) => {
            within("task", task(&update.task))?;
            match &update.news {
                News::Completed(result) => within("proof", proof_is_sane(&result.proof)),
                News::Paused { reason, .. } => within("reason", name(reason)),
                News::Failed { code, .. } => within("code", name(code)),
                News::Working { waiting, .. } => {
                    within("waiting", waiting.as_ref().is_none_or(|w| name(w)))
                }
                News::Canceled { .. } => Ok(()),
            }
        }
        Body::Cancel(cancel) => within("task", task(&cancel.task)),
        Body::Receipt(receipt) => within("task", task(&receipt.task)),
        Body::Refusal(refusal) => {
            within("task", task(&refusal.task))?;
            within("evidence", evidence_is_sane(&refusal.evidence))
        }
        Body::Ack(_) => Ok(()),
        Body::Since(since) => {
            within("cursor", since.cursor.len() <= log::CURSOR_MAX_BYTES)?;
            let sane = since.again.len() <= log::NAMED_MAX && since.again.iter().all(named_is_sane);
            within("again", sane)
        }
        Body::Entries(page) => {
            let cursors = [Some(&page.cursor), page.next.as_ref()];
            let short = |c: &String| c.len() <= log::CURSOR_MAX_BYTES;
            within("cursor", cursors.into_iter().flatten().all(short))?;
            let sane = page.awards.len() <= log::PAGE_MAX && page.awards.iter().all(award_is_sane);
            within("awards", sane)
        }
        Body::Hello(hello) => {
            let ids = [Some(&hello.instance), hello.answers.as_ref()];
            within("instance", ids.into_iter().flatten().all(|id| task(id)))
        }
        // Its signatures are the measure of it.
        Body::Outgrown(_) => Ok(()),
        Body::Transfer(transfer) => within("transfer", transfer.is_sane()),
    }
}

fn named_is_sane(named: &log::Named) -> bool {
    task(&named.task) && key(&named.requester)
}

fn award_is_sane(award: &log::AwardLog) -> bool {
    let about = |e: &Entry| e.task == award.award.task && e.requester == award.award.requester;
    let terms = award.terms.as_ref().is_none_or(|terms| {
        let names = [&terms.skill, &terms.on_cancel, &terms.verification];
        names.iter().all(|n| name(n)) && terms.max_price_mc < MAX_INTEGER
    });
    named_is_sane(&award.award)
        && award.entries.len() <= log::ENTRIES_MAX
        && (award.entries.iter()).all(|e| entry_is_sane(e) && about(e))
        && terms
        && award.proof.as_ref().is_none_or(proof_is_sane)
        && award.evidence.as_ref().is_none_or(evidence_is_sane)
}

fn entry_is_sane(entry: &Entry) -> bool {
    let what = match &entry.what {
        Act::Declined { code, .. } | Act::Failed { code, .. } | Act::Refused { code, .. } => {
            name(code)
        }
        Act::Stopped { hops, .. } => hops_are_sane(hops),
        _ => true,
    };
    let names = [&entry.key, &entry.prev, &entry.sig, &entry.author];
    what && names.iter().all(|n| name(n))
        && entry.heads.len() <= MAX_HEADS
        && entry.heads.iter().all(|n| name(n))
}

fn proof_is_sane(proof: &Proof) -> bool {
    let names = [
        &proof.lct,
        &proof.key,
        &proof.device,
        &proof.profile,
        &proof.implementation,
        &proof.root,
        &proof.sig,
    ];
    names.iter().all(|n| name(n))
        && proof.model.as_ref().is_none_or(|n| name(n))
        && hops_are_sane(&proof.hops)
}

fn hops_are_sane(hops: &[Hop]) -> bool {
    let sane = |hop: &Hop| {
        hex_digits(&hop.executor, HASH_HEX_DIGITS)
            && hex_digits(&hop.proof, HASH_HEX_DIGITS)
            && name(&hop.skill)
            && hop.cost_mc < MAX_INTEGER
    };
    hops.len() <= MAX_HOPS && hops.iter().all(sane)
}

fn evidence_is_sane(evidence: &Evidence) -> bool {
    let parts = [&evidence.expected, &evidence.received];
    name(&evidence.code) && parts.iter().all(|p| p.len() <= MAX_EVIDENCE_BYTES)
}

/// Cuts what a message says to a person: it may quote anything, and nobody reads more.
pub fn cut_texts(body: &mut Body) {
    let text = match body {
        Body::Decline(decline) => &mut decline.message,
        Body::Update(update) => match &mut update.news {
            News::Failed { message, .. } => message,
            _ => return,
        },
        _ => return,
    };
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT_CHARS) {
        text.truncate(end);
    }
}

/// Leaves of the relays in a message only those that a stranger may send us to: `wss://`, at most [`MAX_RELAYS`], none on this
/// machine or its private network. Relays that the owner listed are used anyway and need no naming by others.
pub fn keep_public_relays(body: &mut Body) {
    let relays = match body {
        Body::Ad(ad) => &mut ad.relays,
        Body::Offer(offer) => &mut offer.relays,
        Body::Bid(bid) => &mut bid.relays,
        Body::Award(award) | Body::Request(award) => &mut award.relays,
        Body::Accept(accept) => &mut accept.relays,
        Body::Withdraw(_)
        | Body::Decline(_)
        | Body::Update(_)
        | Body::Cancel(_)
        | Body::Receipt(_)
        | Body::Refusal(_)
        | Body::Ack(_)
        | Body::Transfer(_)
        | Body::Since(_)
        | Body::Entries(_)
        | Body::Hello(_)
        | Body::Outgrown(_) => return,
    };
    relays.retain(|url| is_public_relay(url));
    relays.truncate(MAX_RELAYS);
}

/// Whether an address named by somebody else may be connected to. A name that resolves to a private address is not seen here,
/// but where it is resolved: see [`is_public_address`].
pub fn is_public_relay(url: &str) -> bool {
    if url.len() > MAX_RELAY_BYTES || !url.starts_with("wss://") {
        return false;
    }
    let Ok(url) = RelayUrl::parse(url) else {
        return false;
    };
    match url.host() {
        Some(Host::Ipv4(ip)) => is_public_address(ip.into()),
        Some(Host::Ipv6(ip)) => is_public_address(ip.into()),
        Some(Host::Domain(domain)) => is_public_name(domain),
        None => false,
    }
}

/// Whether an address lies outside this machine and every private, shared or reserved network (IANA special-purpose registries).
pub fn is_public_address(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_name(domain: &str) -> bool {
    let domain = domain.trim_end_matches('.').to_ascii_lowercase();
    let private = [
        "localhost",
        "local",
        "internal",
        "lan",
        "home",
        "corp",
        "home.arpa",
    ];
    let inside = |zone: &str| domain == zone || domain.ends_with(&format!(".{zone}"));
    // A host without a dot is looked up in the reader's own network; an address in brackets or digits is none of a name.
    domain.contains('.') && domain.parse::<IpAddr>().is_err() && !private.into_iter().any(inside)
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let reserved =
        a == 0 || a >= 224 || (a == 192 && b == 0 && c == 0) || (a == 198 && b & 0xfe == 18);
    !(ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_documentation()
        || shared
        || reserved)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    // Mapped, compatible, NAT64, 6to4: the address inside is the one that is reached.
    let inside = match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0 | 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => Some((g, h)),
        (0x2002, ..) => Some((b, c)),
        _ => None,
    };
    if let Some((high, low)) = inside {
        let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    // Only 2000::/3 is global unicast.
    a & 0xe000 == 0x2000 && !(a == 0x2001 && b == 0xdb8)
}

fn within(field: &'static str, holds: bool) -> Result<(), MessageError> {
    if holds {
        Ok(())
    } else {
        Err(MessageError::Bounds(field))
    }
}

fn name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES
}

/// Ids become parts of keys in the store: nothing but hex may be in them.
fn task(id: &str) -> bool {
    hex_digits(id, TASK_HEX_DIGITS)
}

/// The chain of a job: links only, and not more than any node goes along with.
fn chain(via: &[String]) -> bool {
    via.len() <= MAX_CHAIN && via.iter().all(|link| hex_digits(link, LINK_BYTES * 2))
}

fn hex_digits(text: &str, digits: usize) -> bool {
    text.len() == digits
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A Nostr key, hex: it becomes part of keys in the store as well.
fn key(id: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    id.len() == 64 && id.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::wire::market::{Offer, Withdraw};

    #[test]
    fn a_relay_named_by_others_is_public_or_not_used() {
        for url in [
            "wss://relay.example.org",
            "wss://relay.example.org:4443/path",
            "wss://8.8.8.8",
            "wss://[2606:4700::1111]",
        ] {
            assert!(is_public_relay(url), "{url}");
        }
        let long = format!("wss://{}.example.org", "a".repeat(300));
        for url in [
            "ws://relay.example.org",
            "file:///etc/passwd",
            "https://relay.example.org",
            "wss://",
            "wss://localhost",
            "wss://a.localhost:8080",
            "wss://router",
            "wss://nas.local",
            "wss://db.internal.",
            "wss://127.0.0.1:9",
            "wss://127.1",
            "wss://0x7f000001",
            "wss://2130706433",
            "wss://0.0.0.0",
            "wss://10.1.2.3",
            "wss://172.16.0.1",
            "wss://192.168.1.1",
            "wss://169.254.169.254",
            "wss://100.100.100.100",
            "wss://198.18.0.1",
            "wss://224.0.0.1",
            "wss://255.255.255.255",
            "wss://[::1]",
            "wss://[::]",
            "wss://[::ffff:127.0.0.1]",
            "wss://[::ffff:10.0.0.1]",
            "wss://[64:ff9b::a00:1]",
            "wss://[2002:7f00:1::]",
            "wss://[fc00::1]",
            "wss://[fe80::1]",
            &long,
        ] {
            assert!(!is_public_relay(url), "{url}");
        }
    }

    #[test]
    fn ids_that_are_no_ids_and_times_out_of_time_are_named() {
        let now_ms = 1_795_219_200_000;
        let offer = |change: fn(&mut Offer)| {
            let mut offer = Offer {
                task: "0123456789abcdef0123456789abcdef".into(),
                round: 1,
                skill: "simulation".into(),
                units: 1,
                commitment: "c".repeat(64),
                max_price_mc: 10,
                result_by_ms: 1_795_219_200_000 + 600_000,
                verification: "sampled".into(),
                output_bytes_max: 100,
                input_bytes_max: 0,
                reply: "a".repeat(64),
                relays: vec!["wss://10.0.0.1".into(), "wss://relay.example.org".into()],
                expires_ms: 1_795_219_200_000 + 60_000,
                via: vec!["0".repeat(32)],
                model: None,
            };
            change(&mut offer);
            Body::Offer(Box::new(offer))
        };
        check(&offer(|_| {}), now_ms).unwrap();
        let field = |body: &Body| match check(body, now_ms).unwrap_err() {
            MessageError::Bounds(field) => field,
            other => panic!("{other}"),
        };
        assert_eq!(field(&offer(|o| o.task = "../../x".into())), "task");
        assert_eq!(
            field(&offer(
                |o| o.task = "0123456789ABCDEF0123456789ABCDEF".into()
            )),
            "task"
        );
        assert_eq!(field(&offer(|o| o.skill = "s".repeat(10_000))), "skill");
        assert_eq!(field(&offer(|o| o.via = vec!["0".repeat(32); 17])), "via");
        assert_eq!(field(&offer(|o| o.via = vec!["../x".into()])), "via");
        let long = |o: &mut Offer| o.model = Some("m".repeat(10_000));
        assert_eq!(field(&offer(long)), "model");
        assert_eq!(field(&offer(|o| o.max_price_mc = u64::MAX)), "max_price_mc");
        assert_eq!(field(&offer(|o| o.expires_ms = u64::MAX)), "expires_ms");
        assert_eq!(field(&offer(|o| o.result_by_ms = u64::MAX)), "result_by_ms");
        let withdraw = Withdraw {
            task: "a/1".into(),
            below_award_no: 1,
        };
        assert_eq!(field(&Body::Withdraw(withdraw)), "task");
        let mut body = offer(|_| {});
        keep_public_relays(&mut body);
        let Body::Offer(offer) = body else {
            panic!("another body")
        };
        assert_eq!(offer.relays, ["wss://relay.example.org"]);
    }
}
