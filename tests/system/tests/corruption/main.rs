//! Damaged data directories of real brokers: what finds the damage, what is served in spite of it, and what
//! `ringtide repair` makes of it.
//!
//! The directories are made once ([`directory`]): by a broker that stopped cleanly, and by one that was killed while its
//! log was needed. All of it needs about 30 s of CPU time.

mod cut_files;
mod cut_log;
mod directory;
mod fields;
mod flips;
mod repair;
mod search;
