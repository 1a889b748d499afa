//! The driver against the real kernel: sockets on loopback, files in the target directory.

mod connections;
mod disk;
mod echo;
mod egress;
mod mail;
mod remote;
