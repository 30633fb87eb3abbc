//! Anti-entropy: replicas that differ find out cheaply, and become equal.
//!
//! Each home replica keeps a Merkle tree of every keyspace in every partition (`tree`, `forest`). Two of them compare
//! roots on a schedule, go down where they differ, list what is there, and send each other what the other lacks
//! (`exchange`). Records are merged as any that comes, so a comparison that is old by the time it is acted on does
//! no harm: it costs a record sent in vain.
//!
//! Sources: the trees are Dynamo's (DeCandia et al. 2007, section 4.7); that they are kept up with each write, not
//! built when they are wanted, is Riak's active anti-entropy.

pub mod exchange;
pub mod forest;
pub mod records;
pub mod tree;
