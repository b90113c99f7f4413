//! Deliberate errors that the simulator must find, one for each rule that a server can break.
//!
//! Production code asks [`is`] where the error would be made. Without the feature `planted` the
//! answer is a constant, and nothing of it is left in the program; with it a release build is
//! refused. The simulator runs everything in one thread, so the switch is the thread's.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("planted errors must never be built into a release");

/// What can be planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Planted {
    /// Rule 13: a put is acknowledged before its data was flushed.
    AckBeforeFlush,
    /// Rule 4: space is given to the next block before the free record is durable.
    GiveBlockTwice,
    /// Rule 4: a free that comes again frees whatever lies there by now.
    FreeByAddress,
    /// Rule 4: space is given to the next block while somebody reads the old one.
    FreeUnderReader,
    /// Rule 4: a block that is gone is served by its old address.
    WrongPgServed,
    /// Rule 12: recovery trusts blocks whose data may be torn.
    SkipTornCheck,
    /// Rule 7: a commit is applied whatever truncate epoch it was made under.
    ForgetTruncateEpoch,
    /// Rule 1: "unknown, free it" is answered without a horizon in the log.
    SkipHorizon,
    /// Rule 9: a sync marks clean what changed while it wrote.
    MarkCleanChanged,
    /// Rule 3: a commit that comes twice is applied twice.
    ForgetCommitIds,
    /// Rule 4: members are told to free what a commit is about to overwrite.
    FreeBeforeCommit,
    /// Rule 9: what a prestage brings replaces newer bytes.
    PrestageOverwrites,
    /// Rule 8: a namespace operation that comes again is done again.
    RetryTwice,
    /// Rule 10: an operation on names is settled while a process before may still be at it.
    SettleUnproven,
    /// Rule 8: fragments are dropped before the backing file system has removed the last name.
    DropBeforeBfsAgreed,
    /// Rule 7: a size that was reached before a truncate is taken over after it.
    OldSizeRaise,
    /// A file that changed on the backing file system behind our back is served as it was.
    IgnoreGuard,
    /// Rule 11: "no such file" of a file system that is not mounted is believed.
    TrustUnmounted,
    /// Rule 10: a sync writes to the backing file system before its intent is in the log.
    SyncWithoutIntent,
    /// A sync marks clean what the backing file system has not made durable.
    CleanBeforeBfsFsync,
    /// Rule 10: what a predecessor was writing counts as settled without proof that it is gone.
    IgnoreHungWrite,
    /// Rule 2: home frees when the first participant has released, not when all have.
    FreeAtFirstRelease,
    /// Rule 5: a device is taken for what its place says, whatever it says itself.
    TrustAnyDevice,
    /// Rule 15: a member that did not answer counts as having freed its block.
    ForgetUnfreed,
    /// Rule 16: commits are taken whatever memory the metadata takes.
    IgnoreBudget,
    /// Rule 17: nobody looks at what a capability permits.
    IgnoreCapability,
    /// Rule 11: dirty bytes are dropped because the backing file system is not there.
    DropDirtyUnmounted,
    /// Leases: a node whose lease is over goes on serving.
    ServeWithoutLease,
    /// Leases: a node is taken down before its lease and the drift of clocks are over.
    SkipLeaseWait,
    /// Numbers that fence: requests and records of an older configuration are taken, and a primary
    /// goes on under its own when a newer one has given its role away.
    IgnoreConfiguration,
    /// Committed: what the primary alone has logged counts.
    AckWithoutBackup,
    /// Committed: a backup acknowledges what is not durable yet.
    BackupAcksEarly,
    /// Take-over: whoever does not answer at once is not waited for.
    TakeOverWithoutAll,
    /// Filling: a replica counts as full before it has everything.
    FillHalf,
    /// Handing over: a primary gives away at once what it is at work on, and goes on serving it.
    ServeWhileHandingOver,
    /// Rule 1: a new primary begins with an empty horizon.
    DropHorizonAtTakeOver,
    /// Rule 1: a partition that lost its state answers "unknown" like any other.
    UnknownAfterLostState,
    /// Rule 12: a log that ends below what is committed is taken for a good one.
    IgnoreShortLog,
    /// Filling: a snapshot of an earlier tenure, or one that comes late, is installed.
    InstallStaleSnapshot,
}

#[cfg(feature = "planted")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Planted>> = const { std::cell::Cell::new(None) };
}

/// Switches one error on for this thread, or all off.
#[cfg(feature = "planted")]
pub fn set(planted: Option<Planted>) {
    ACTIVE.set(planted);
}

/// Whether the error is to be made.
#[cfg(feature = "planted")]
pub fn is(planted: Planted) -> bool {
    ACTIVE.get() == Some(planted)
}

/// Whether the error is to be made: never.
#[cfg(not(feature = "planted"))]
pub const fn is(_planted: Planted) -> bool {
    false
}
