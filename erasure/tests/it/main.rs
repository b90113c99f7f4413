//! The guarantees of the crate, for all codecs of the build.

mod any_k_losses_are_restored;
mod code_words_never_change;
mod seal_is_encode_plus_checksums;
mod support;
mod wrong_calls_are_refused;
