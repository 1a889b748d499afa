//! A stream of frames, however it is cut.
//!
//! Cut anywhere it gives the same frames and the same end as in one piece, also when frames are
//! refused for a while. What is held of a frame never exceeds what its own header has bounded, nor what
//! has arrived by much.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{bounded, cut, seal, sealed_by};
use ringtide_schema::frame::{FrameError, FrameHeader, HEADER_BYTES};
use ringtide_schema::limits::{MAX_ENVELOPE_BYTES, MAX_PAYLOAD_BYTES};
use ringtide_session::{Assembler, Frame, SessionError, Taken};

sealed_by!(seal::cut_frames);

/// The largest frame, and the buffer that is kept for the next.
const MOST_BYTES: usize = HEADER_BYTES + MAX_ENVELOPE_BYTES + MAX_PAYLOAD_BYTES + (4 << 10);

type Seen = (FrameHeader, Vec<u8>, Vec<u8>);

fn seen(frame: Frame<'_>) -> Seen {
    assert_eq!(frame.envelope.len(), frame.header.envelope_bytes as usize);
    assert_eq!(frame.payload.len(), frame.header.payload_bytes as usize);
    (
        frame.header,
        frame.envelope.to_vec(),
        frame.payload.to_vec(),
    )
}

/// The frames of the pieces, and whether one has begun at the end or why it ended. Every `refused`th offer of
/// a frame is refused, and repeated after `later` pieces.
fn assemble(
    pieces: &[&[u8]],
    refused: usize,
    later: usize,
) -> (Vec<Seen>, Result<bool, FrameError>) {
    let mut assembler = Assembler::new();
    let (mut frames, mut offers, mut wait) = (Vec::new(), 0, 0);
    let mut each = |frame: Frame<'_>| {
        offers += 1;
        if refused > 0 && offers % refused == 0 {
            return Taken::No;
        }
        frames.push(seen(frame));
        Taken::Yes
    };
    let mut result = Ok(());
    for piece in pieces {
        result = assembler.feed_until(piece, &mut each);
        wait += 1;
        if assembler.is_blocked() && wait > later {
            wait = 0;
            result = result.and_then(|()| assembler.retry(&mut each));
        }
        if result.is_err() {
            break;
        }
    }
    while result.is_ok() && assembler.is_blocked() {
        result = assembler.retry(&mut each);
    }
    let end = match result {
        Ok(()) => Ok(assembler.is_mid_frame()),
        // Wrong magic is told from the first byte on: how much of it there was depends on the cuts.
        Err(SessionError::Frame(FrameError::Magic(_))) => Err(FrameError::Magic([0; 4])),
        Err(SessionError::Frame(error)) => Err(error),
    };
    (frames, end)
}

fuzz_target!(|data: &[u8]| {
    let (stream, pieces) = cut(data);
    let whole = assemble(&[stream], 0, 0);
    assert_eq!(assemble(&pieces, 0, 0), whole, "cut");
    for (refused, later) in [(2, 0), (3, 2)] {
        let again = assemble(&pieces, refused, later);
        assert_eq!(again, whole, "every {refused}th offer refused");
    }
    let mut assembler = Assembler::new();
    bounded(MOST_BYTES, || {
        for piece in &pieces {
            if assembler.feed(piece, |_| ()).is_err() {
                return;
            }
        }
    });
});
