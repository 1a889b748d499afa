//! Mail between two shards, in the driver's own queues.

use std::hint::black_box;

use ringtide_io::ConnId;
use ringtide_shard::Mail;
use ringtide_uring::mailbox::awake_mesh;

use crate::Operation;

/// As a broker has them.
const SLOTS: usize = 1024;
const MAILS: u32 = 64;

/// Mail to another shard, taken there; the one thread is both.
pub fn mailbox_hop() -> Operation {
    let mut boxes = awake_mesh::<Mail>(2, SLOTS).expect("there are descriptors");
    Operation::of(MAILS, move || {
        for _ in 0..MAILS {
            let conn = ConnId(black_box(7));
            boxes[0].send(1, Mail::Drained { conn });
            boxes[0].flush();
            let came = boxes[1].receive(|from, mail| {
                black_box((from, mail));
            });
            assert!(came, "nothing came");
        }
    })
}
