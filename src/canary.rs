//! Bugs on purpose, one at a time, to see whether the checks find them: canaries.
//!
//! A canary stands in the code where its bug would: `if canary::sings(Canary::X) { … }`. Nothing sings until a
//! test in the same process plants one. Release builds don't contain them at all, unless they are built with
//! `--cfg quoral_canaries`: there [`sings`] is a constant false. `tests/sim` asserts that each is caught.
//!
//! Invariants:
//! 1. At most one canary is planted in a process.
//! 2. A release build without the cfg can't be told to sing: there is no switch, neither option nor variable.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Canary {
    /// The commit thread acknowledges before it syncs.
    AckBeforeSync = 1,
    /// Readers are told of what is written and not yet synced.
    UnsyncedRead,
    /// A replica's "not found" outvotes the others' record (F18).
    NotFoundWins,
    /// A read replies without waiting until what it writes back is stored.
    WriteBackOff,
    /// A replica with a greater stamp acknowledges a fresh write instead of `Superseded` (F16).
    SupersededIgnored,
    /// The clock's bound is not stored, so stamps go back over a restart (F13).
    ClockBoundForgotten,
    /// Dots are named by births that begin anew with each life, whatever the local mark says (F10).
    DotTwice,
    /// A replica that takes a tombstone forgets the key at once (F01).
    TombstoneDropped,
    /// A forwarded write whose outcome is unknown is sent to the next home replica.
    ForwardRetried,
    /// A write that was sent and not acknowledged is said to be surely not applied (F30).
    FailureSaidNo,
    /// Nothing ends at its deadline.
    DeadlineIgnored,
    /// Merging two records with concurrent versions loses one.
    SiblingForgotten,
    /// A proposer of a cluster map takes its own vote for a majority (F23).
    VotesIgnored,
    /// A node takes any cluster map that it is given, older ones too.
    StaleMap,
    /// Bytes in flight on a link are not given back when it breaks (F28).
    BytesLeaked,
    /// A hint is forgotten when it is its turn, and not sent.
    HintDropped,
    /// A new keyspace gets the id of one that was dropped, whose records may still be there.
    KeyspaceIdReused,
    /// A read does not wait for what its session has seen.
    SessionForgotten,
    /// A tombstone is purged by each replica when its grace is over: nobody is asked (F01, F02).
    PurgedUnasked,
    /// A tombstone is purged as soon as all replicas have confirmed it.
    PurgedAtOnce,
    /// What is to be purged is deleted, whatever it is by then (F03).
    PurgedBlindly,
    /// A hint is kept, sent and taken however old it is (F04).
    HintNeverTooOld,
    /// An exchange of anti-entropy sends nothing, it only fetches.
    ExchangeOneWay,
    /// Of the records that a list lacks the last is forgotten.
    RecordForgotten,
    /// A node that lost its disk answers for what it has not got back (F18).
    LostDiskAnswers,
    /// What a repair brings to a replica has no time to live any more (F08).
    ExpiryForgotten,
}

impl Canary {
    /// All of them.
    pub const ALL: [Canary; 26] = [
        Canary::AckBeforeSync,
        Canary::UnsyncedRead,
        Canary::NotFoundWins,
        Canary::WriteBackOff,
        Canary::SupersededIgnored,
        Canary::ClockBoundForgotten,
        Canary::DotTwice,
        Canary::TombstoneDropped,
        Canary::ForwardRetried,
        Canary::FailureSaidNo,
        Canary::DeadlineIgnored,
        Canary::SiblingForgotten,
        Canary::VotesIgnored,
        Canary::StaleMap,
        Canary::BytesLeaked,
        Canary::HintDropped,
        Canary::KeyspaceIdReused,
        Canary::SessionForgotten,
        Canary::PurgedUnasked,
        Canary::PurgedAtOnce,
        Canary::PurgedBlindly,
        Canary::HintNeverTooOld,
        Canary::ExchangeOneWay,
        Canary::RecordForgotten,
        Canary::LostDiskAnswers,
        Canary::ExpiryForgotten,
    ];
}

#[cfg(any(debug_assertions, quoral_canaries))]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Canary;

    static PLANTED: AtomicU8 = AtomicU8::new(0);

    /// Whether this bug is to show.
    #[inline]
    pub fn sings(canary: Canary) -> bool {
        PLANTED.load(Ordering::Relaxed) == canary as u8
    }

    /// Plants a bug in this process, or takes it out again. False if this build has none.
    pub fn plant(canary: Option<Canary>) -> bool {
        PLANTED.store(canary.map_or(0, |canary| canary as u8), Ordering::Relaxed);
        true
    }
}

#[cfg(not(any(debug_assertions, quoral_canaries)))]
mod switch {
    use super::Canary;

    /// Whether this bug is to show: never in this build.
    #[inline(always)]
    pub const fn sings(_: Canary) -> bool {
        false
    }

    /// Plants a bug in this process, or takes it out again. False: this build has none.
    pub fn plant(canary: Option<Canary>) -> bool {
        canary.is_none()
    }
}

pub use switch::{plant, sings};
