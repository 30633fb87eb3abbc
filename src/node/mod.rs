pub mod committer;
pub mod coordinator;
pub mod drive;
pub mod env;
pub mod gossip;
pub mod links;
pub mod readings;
pub mod scans;
