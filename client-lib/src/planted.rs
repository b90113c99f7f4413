//! Deliberate errors that the simulator must find. Not part of release builds.

/// An error to plant into a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// Forgets the bytes of a sealed parity group before its commit is acknowledged.
    DropSealedBeforeCommit,
    /// Does not check what members send against its checksums.
    TrustCrc,
    /// Sends a commit while an earlier overlapping one has no outcome yet (rule 3).
    SkipReorderWait,
    /// A read that holds blocks waits for buffers for the others (rule 14).
    HoldAndWait,
    /// Returns from fsync before the participants have acknowledged.
    FsyncBeforeCommit,
}
