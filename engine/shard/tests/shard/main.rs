//! Shards driven through the seam to their driver, against disks, sockets and mailboxes in memory.

mod disk;
mod peer;
mod world;

mod any_order;
mod describe;
mod few_files;
mod files;
mod forwarding;
mod half_frames;
mod publishing;
mod requests;
