//! The words that a carrier and the node exchange: limits, events, outcomes. Plain data; knows no socket.

use std::fmt;
use std::sync::Arc;

use nostr::{Event, EventId, JsonUtil, Keys, PublicKey, RelayUrl};
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// Limits and times of the relay carrier. All per relay unless said otherwise.
#[derive(Debug, Clone)]
pub struct CarrierConfig {
    /// Most relays at once.
    pub max_relays: usize,
    /// Capacity of the channel of [`CarrierEvent`]s, all relays together.
    pub event_queue_events: usize,
    /// Events read from the socket that may wait for room in the channel before the socket is no longer read.
    pub pending_events: usize,
    /// Publications that may wait for the connection's task.
    pub publish_queue_events: usize,
    /// Publications sent and not yet answered by an OK.
    pub max_in_flight_events: usize,
    /// Bytes of the publications sent and not yet answered (kept for the retry after AUTH).
    pub max_in_flight_bytes: usize,
    /// Largest event taken or published, as JSON. A larger one that arrives is counted and skipped.
    pub max_event_bytes: usize,
    /// Largest WebSocket message. A larger one ends the connection.
    pub max_message_bytes: usize,
    /// Events remembered, all relays together, to filter copies of the same event from several relays.
    pub recent_events: usize,
    /// Most inboxes in one [`Handle::set_inboxes`](super::Handle::set_inboxes).
    pub max_inboxes: usize,
    /// Most keys in one filter.
    pub pubkeys_per_filter: usize,
    /// Live requests open at once; half for stored, half for ephemeral wraps.
    pub max_live_reqs: usize,
    /// History requests open at once.
    pub max_history_reqs: usize,
    /// `limit` asked for per history page.
    pub history_page_events: usize,
    /// A page with fewer events than this is the last one. Relays cap pages between 100 and 500; a smaller figure asks once more.
    pub full_page_events: usize,
    /// A history that takes more pages than this is cut, and reported as a gap.
    pub max_history_pages: u32,
    /// How far behind the last seen second stored wraps are asked for: they are backdated by up to two days (NIP-59).
    pub stored_margin_s: u64,
    /// How far back ephemeral wraps are asked for.
    pub ephemeral_lookback_s: u64,
    /// DNS, TCP, TLS and WebSocket handshake together.
    pub connect_timeout_ms: u64,
    /// A publication without an answer for this long is `Unknown`.
    pub ok_timeout_ms: u64,
    /// A request that brings neither an event nor its EOSE for this long makes the connection dead.
    pub eose_timeout_ms: u64,
    /// Time between WebSocket pings.
    pub ping_interval_ms: u64,
    /// A peer that says nothing for this long is dead.
    pub dead_after_ms: u64,
    /// Subscriptions that bring nothing for this long are made anew and the history read again; doubles while that finds nothing.
    pub watchdog_ms: u64,
    /// Longest time between two watchdog readings.
    pub watchdog_cap_ms: u64,
    /// First delay before a reconnect or a repeated request; doubles, with jitter.
    pub backoff_first_ms: u64,
    /// Longest such delay.
    pub backoff_cap_ms: u64,
}

impl Default for CarrierConfig {
    fn default() -> Self {
        Self {
            max_relays: 32,
            event_queue_events: 1_024,
            pending_events: 64,
            publish_queue_events: 1_024,
            max_in_flight_events: 4_096,
            max_in_flight_bytes: 32 << 20,
            max_event_bytes: 128 << 10,
            max_message_bytes: 4 << 20,
            recent_events: 65_536,
            max_inboxes: 800,
            pubkeys_per_filter: 100,
            max_live_reqs: 16,
            max_history_reqs: 2,
            history_page_events: 500,
            full_page_events: 20,
            max_history_pages: 2_000,
            stored_margin_s: 2 * 86_400 + 3_600,
            ephemeral_lookback_s: 300,
            connect_timeout_ms: 10_000,
            ok_timeout_ms: 10_000,
            eose_timeout_ms: 15_000,
            ping_interval_ms: 20_000,
            dead_after_ms: 45_000,
            watchdog_ms: 600_000,
            watchdog_cap_ms: 3_600_000,
            backoff_first_ms: 500,
            backoff_cap_ms: 60_000,
        }
    }
}

/// One inbox to read on every relay.
#[derive(Clone)]
pub struct InboxSpec {
    /// The key that wraps are addressed to (their `p` tag).
    pub pubkey: PublicKey,
    /// Unix second up to which this inbox was read durably; 0 reads everything. The carrier subtracts its own margin.
    pub since_s: u64,
    /// Answers NIP-42 challenges for this inbox; `None` never reveals the key to the relay.
    pub auth: Option<Keys>,
    /// Read stored wraps (kind 1059).
    pub stored: bool,
    /// Read ephemeral wraps (kind 21059).
    pub ephemeral: bool,
}

impl fmt::Debug for InboxSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxSpec")
            .field("pubkey", &self.pubkey)
            .field("since_s", &self.since_s)
            .field("auth", &self.auth.is_some())
            .field("stored", &self.stored)
            .field("ephemeral", &self.ephemeral)
            .finish()
    }
}

/// A signed event, serialised once, ready for any number of relays.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub(crate) event_id: EventId,
    pub(crate) ephemeral: bool,
    /// `["EVENT",{...}]`
    pub(crate) frame: Utf8Bytes,
}

impl Outgoing {
    /// Serialises the event.
    pub fn from_event(event: &Event) -> Self {
        Self::from_json(event.id, event.kind.is_ephemeral(), &event.as_json())
    }

    /// Takes the event's JSON as it was signed and stored; `json` is not looked at.
    pub fn from_json(event_id: EventId, ephemeral: bool, json: &str) -> Self {
        Self {
            event_id,
            ephemeral,
            frame: format!("[\"EVENT\",{json}]").into(),
        }
    }

    /// Id that the outcomes will name.
    pub fn event_id(&self) -> EventId {
        self.event_id
    }
}

/// What a relay made of a publication (NIP-01 `OK`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Taken. Also an ephemeral event that nobody was listening to (`mute:`).
    Accepted,
    /// It had the event already: as good as accepted.
    Duplicate,
    /// No answer: the relay may or may not have it. The text says why (`timeout`, `not connected`, ...).
    Unknown(String),
    /// This relay will never take it (`blocked:`, `invalid:`, `pow:`, `restricted:`, `unsupported:`).
    Final(String),
    /// It may take it later (`rate-limited:`, `error:`, `auth-required:` without a key that it accepts, anything else).
    Retry(String),
}

/// The life of one relay's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayState {
    /// A connection attempt began.
    Connecting,
    /// The WebSocket is open; publications are sent from now on.
    Connected,
    /// Every inbox was read to its end since the connection was made or, if later, since the drain of this generation. All
    /// that was found has been put into the channel before.
    CaughtUp {
        /// What [`Handle::drain`](super::Handle::drain) returned; 0 before the first drain.
        generation: u64,
    },
    /// The relay closed or refused a subscription; it is made again after the delay.
    SubscriptionRefused {
        /// The relay's words, shortened.
        message: String,
        /// Until the next try.
        retry_in_ms: u64,
    },
    /// The relay holds more events in one second, or more pages, than it lets a reader see: some may be unread.
    HistoryGap {
        /// Whose inbox.
        pubkey: PublicKey,
        /// The Unix second concerned.
        at_s: u64,
    },
    /// The connection ended or could not be made.
    Disconnected {
        /// What happened.
        reason: String,
        /// Until the next attempt.
        retry_in_ms: u64,
    },
}

/// What a carrier reports, in order per relay.
#[derive(Debug, Clone)]
pub enum CarrierEvent {
    /// An event for one of the inboxes. Parsed and within the size limit, **not verified**.
    Arrived {
        /// The relay it came from, normalised.
        relay: Arc<str>,
        /// As the relay sent it; anything in it may be forged.
        event: Box<Event>,
    },
    /// One relay's answer to one publication. Copies of an event in flight to the same relay share one answer.
    Published {
        /// The publication.
        event_id: EventId,
        /// The relay that answered, or did not.
        relay: Arc<str>,
        /// Its answer.
        outcome: Outcome,
    },
    /// A relay's connection changed.
    Relay {
        /// The relay, normalised.
        url: Arc<str>,
        /// Its new state.
        state: RelayState,
    },
}

/// A snapshot of one relay, for `status` and `why`.
#[derive(Debug, Clone)]
pub struct RelayStatus {
    /// The relay, normalised.
    pub url: Arc<str>,
    /// Last state reported.
    pub state: RelayState,
    /// Last error or notice, shortened; kept after recovery.
    pub last_error: Option<String>,
    /// Why it refused the newest publication that it answered; `None` once it takes one again.
    pub refuses: Option<String>,
    /// Events delivered.
    pub events_in: u64,
    /// Events dropped as exact copies of one already delivered.
    pub duplicates_in: u64,
    /// Frames dropped: malformed, too large, or not for any inbox.
    pub refused_in: u64,
    /// Publications sent.
    pub events_out: u64,
    /// Publications sent and not answered yet.
    pub in_flight: usize,
    /// Time between the last publication that got an OK and that OK.
    pub rtt_ms: Option<f64>,
}

/// Why a call on the carrier failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarrierError {
    /// Not a ws:// or wss:// address.
    #[error("not a relay address: {url}; write it as wss://host or ws://host:port")]
    BadUrl {
        /// What was given.
        url: String,
    },
    /// More relays than `max_relays`.
    #[error(
        "no room for another relay: the limit is {max_relays}; remove one or raise `max_relays`"
    )]
    TooManyRelays {
        /// The limit.
        max_relays: usize,
    },
    /// More inboxes than `max_inboxes`.
    #[error(
        "{inboxes} inboxes are more than the limit of {max_inboxes}; let finished reply keys go first"
    )]
    TooManyInboxes {
        /// Asked for.
        inboxes: usize,
        /// The limit.
        max_inboxes: usize,
    },
    /// The event cannot be published anywhere.
    #[error(
        "the event is {bytes} bytes, the limit is {max_event_bytes}; send the payload in chunks"
    )]
    EventTooLarge {
        /// Its size as a frame.
        bytes: usize,
        /// The limit.
        max_event_bytes: usize,
    },
    /// `try_publish` found the relay's queue full.
    #[error("the queue of {url} is full; try again once publications were answered")]
    Busy {
        /// The relay.
        url: String,
    },
    /// The relay is not in the set.
    #[error("{url} is not one of the carrier's relays; add it first")]
    UnknownRelay {
        /// The relay.
        url: String,
    },
    /// The receiver of the events was dropped.
    #[error("the carrier has ended because nobody reads its events; start a new one")]
    Ended,
}

impl CarrierError {
    /// Stable code, for people to search for and programs to match on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadUrl { .. } => "carrier_bad_url",
            Self::TooManyRelays { .. } => "carrier_too_many_relays",
            Self::TooManyInboxes { .. } => "carrier_too_many_inboxes",
            Self::EventTooLarge { .. } => "carrier_event_too_large",
            Self::Busy { .. } => "carrier_busy",
            Self::UnknownRelay { .. } => "carrier_unknown_relay",
            Self::Ended => "carrier_ended",
        }
    }
}

/// Parses an address into its normal form. Without a trailing slash: some relays compare AUTH's `relay` tag byte by byte.
pub(crate) fn parse_url(url: &str) -> Result<RelayUrl, CarrierError> {
    RelayUrl::parse(url.trim().trim_end_matches('/'))
        .map_err(|_| CarrierError::BadUrl { url: shorten(url) })
}

/// Foreign text made fit for logs and errors: one line, at most 200 characters.
pub(crate) fn shorten(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect()
}
