//! Each deliberate error must be found by the same random work that finds nothing without it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bb_server::planted::{Planted, set};

use crate::crash_model;

fn is_found(planted: Planted) {
    let found = (0..200).find(|seed| {
        set(Some(planted));
        let result = catch_unwind(AssertUnwindSafe(|| crash_model::run(*seed)));
        set(None);
        result.is_err()
    });
    let seed = found.unwrap_or_else(|| panic!("{planted:?} was not found in 200 seeds"));
    println!("{planted:?} found by seed {seed}");
    crash_model::run(seed);
}

#[test]
fn an_ack_before_the_flush_is_found() {
    is_found(Planted::AckBeforeFlush);
}

#[test]
fn space_given_before_the_free_is_durable_is_found() {
    is_found(Planted::GiveBlockTwice);
}

#[test]
fn space_given_while_it_is_read_is_found() {
    is_found(Planted::FreeUnderReader);
}

#[test]
fn a_block_served_by_its_address_is_found() {
    is_found(Planted::WrongPgServed);
}

#[test]
fn a_torn_block_that_is_trusted_is_found() {
    is_found(Planted::SkipTornCheck);
}
