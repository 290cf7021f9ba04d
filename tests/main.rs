//! tests

mod support {
    #[cfg(feature = "relay")]
    pub(crate) mod npm_relay;
}
#[cfg(feature = "relay")]
mod relay;
