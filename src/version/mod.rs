//! Versions: what a replica stores for a key, and how two replicas' copies become one.
//!
//! A record is either one `lww` version, ordered by `(stamp, node)`, or a set of `siblings`, each with a
//! *dot* (its name) and its *past* (the causal context of the write that made it). Merging keeps a version
//! unless another's past covers its dot. That is a dotted version vector set (Almeida et al., "Scalable and
//! accurate causality tracking for eventually consistent stores"), with one change: a past is exact. It is
//! a version vector plus single dots beyond it, so the context that a put returns covers what that put
//! wrote and replaced and nothing else, even when the same node minted a concurrent sibling in between.
//!
//! Laws, proved by property tests and by an exhaustive model in `tests/model`: merge is commutative,
//! associative and idempotent, and never forgets a version that no other version's past covers.
//!
//! Caveats:
//! - `lww` trusts clocks between writes that overlap; see [`hlc`] for what bounds the trust.
//! - A version that has expired *is* a tombstone: nobody rewrites it, every reader sees it so.

pub mod codec;
pub mod dvv;
pub mod hlc;
pub mod median;
pub mod record;
pub mod session;
