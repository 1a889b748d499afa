//! Shards driven through the seam to their driver, against disks, sockets and mailboxes in memory.

mod any_order;
mod disk;
mod peer;
mod world;

mod files;
mod forwarding;
mod half_frames;
mod publishing;
mod requests;
