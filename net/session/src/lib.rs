//! A Ringtide connection without I/O: bytes in, frames out, and frames back to bytes.
//!
//! Both sides use it: the broker's shard and the client. It knows frames, envelopes and version
//! negotiation; it does not know partitions, sockets or clocks. A [`SessionError`] means that the
//! stream cannot be trusted any more: the connection is to be closed.

mod assemble;
mod encode;
mod hello;

pub use assemble::{Assembler, Frame, SessionError, Taken};
pub use encode::{Encoder, envelope};
pub use hello::{HelloError, negotiate};
