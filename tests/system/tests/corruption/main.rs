//! Damaged data directories of real brokers: what finds the damage, what is served in spite of it, and what
//! `ringtide repair` makes of it.
//!
//! The directories are made once ([`directory`]): by a broker that stopped cleanly, and by one that was killed while its
//! log was needed. About 25 s with a release binary on two idle cores.

mod directory;
mod fields;
mod flips;
mod repair;
