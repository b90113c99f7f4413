//! Groups of voters in simulation: under faults, one fault at a time, with damaged bytes.
#![expect(clippy::unwrap_used, reason = "tests")]

mod cost;
mod damage;
mod directed;
mod storms;
mod world;
