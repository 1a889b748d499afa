//! Cutting a stream of bytes into frames. A frame that arrives whole is handed on where it lies;
//! only one that arrives in pieces is copied, into memory that its own header has bounded.

use ringtide_schema::frame::{FrameError, FrameHeader, HEADER_BYTES};

/// One whole frame, its lengths checked, its envelope not yet.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The checked header.
    pub header: FrameHeader,
    /// The FlatBuffers envelope, not yet verified.
    pub envelope: &'a [u8],
    /// Record batches, not yet checked.
    pub payload: &'a [u8],
}

/// Why a stream cannot be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A header that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Collects what arrives of a frame until it is whole.
#[derive(Debug, Default)]
pub struct Assembler {
    /// The beginning of a frame whose rest has not arrived; empty between frames. While blocked, what is offered
    /// again.
    partial: Vec<u8>,
    /// Bytes of that frame, once its header has been read.
    want: Option<usize>,
    /// A frame in `partial` was refused.
    blocked: bool,
    /// Where that frame is: those before it were taken.
    refused_at: usize,
}

/// Whether a frame was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was.
    Yes,
    /// Not now: offer it again later.
    No,
}

/// A buffer larger than this is given back as soon as its frame was handled.
const KEPT_BYTES: usize = 4 << 10;

/// Memory for a frame grows with what arrives of it, from at most this: a header that declares a long frame takes
/// nothing yet.
const FIRST_BYTES: usize = 128 << 10;

impl Assembler {
    /// An assembler at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes held for a frame that is not whole yet.
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Whether a frame has begun to arrive but is not whole.
    pub fn is_mid_frame(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Takes what arrived and calls `each` for every frame that is whole now, in order.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Frame<'_>),
    ) -> Result<(), SessionError> {
        self.feed_until(bytes, |frame| {
            each(frame);
            Taken::Yes
        })
    }

    /// As [`Self::feed`], but `each` may refuse a frame for now: it and all that follows is kept
    /// for [`Self::retry`]. The caller stops receiving, which bounds what is kept.
    pub fn feed_until(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Frame<'_>) -> Taken,
    ) -> Result<(), SessionError> {
        if self.blocked {
            if self.refused_at > self.partial.len() / 2 {
                self.partial.drain(..std::mem::take(&mut self.refused_at));
            }
            self.partial.extend_from_slice(bytes);
            return Ok(());
        }
        if !self.partial.is_empty() {
            let Some(rest) = self.complete_partial(bytes)? else {
                return Ok(());
            };
            bytes = rest;
            let mut whole = std::mem::take(&mut self.partial);
            if let Some(header) = FrameHeader::decode(&whole)?
                && each(split(header, &whole)) == Taken::No
            {
                whole.extend_from_slice(bytes);
                self.partial = whole;
                self.blocked = true;
                return Ok(());
            }
            whole.clear();
            if whole.capacity() <= KEPT_BYTES {
                self.partial = whole;
            }
        }
        while let Some(header) = FrameHeader::decode(bytes)? {
            if bytes.len() < header.frame_bytes() {
                self.want = Some(header.frame_bytes());
                break;
            }
            if each(split(header, bytes)) == Taken::No {
                self.blocked = true;
                break;
            }
            bytes = &bytes[header.frame_bytes()..];
        }
        self.keep(bytes);
        Ok(())
    }

    /// Whether a frame was refused and waits for [`Self::retry`].
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Offers what was kept once more. However often something is refused, it is not copied again.
    pub fn retry(&mut self, mut each: impl FnMut(Frame<'_>) -> Taken) -> Result<(), SessionError> {
        let kept = std::mem::take(&mut self.partial);
        let mut at = std::mem::take(&mut self.refused_at);
        self.blocked = false;
        self.want = None;
        while let Some(header) = FrameHeader::decode(&kept[at..])?
            && header.frame_bytes() <= kept.len() - at
        {
            if each(split(header, &kept[at..])) == Taken::No {
                self.partial = kept;
                self.blocked = true;
                self.refused_at = at;
                return Ok(());
            }
            at += header.frame_bytes();
        }
        self.feed_until(&kept[at..], each)
    }

    /// Adds to the partial frame.
    fn keep(&mut self, bytes: &[u8]) {
        let need = self.partial.len() + bytes.len();
        if let Some(want) = self.want
            && need > self.partial.capacity()
        {
            let room = want.min(FIRST_BYTES.max(2 * need));
            self.partial.reserve_exact(room - self.partial.len());
        }
        self.partial.extend_from_slice(bytes);
    }

    /// Moves bytes to the partial frame; when it is whole, what follows it.
    fn complete_partial<'a>(
        &mut self,
        mut bytes: &'a [u8],
    ) -> Result<Option<&'a [u8]>, SessionError> {
        if self.want.is_none() {
            let take = bytes.len().min(HEADER_BYTES - self.partial.len());
            self.partial.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            match FrameHeader::decode(&self.partial)? {
                None => return Ok(None),
                Some(header) => self.want = Some(header.frame_bytes()),
            }
        }
        let want = self.want.unwrap_or(HEADER_BYTES);
        let take = bytes.len().min(want - self.partial.len());
        self.keep(&bytes[..take]);
        if self.partial.len() < want {
            return Ok(None);
        }
        self.want = None;
        Ok(Some(&bytes[take..]))
    }
}

fn split(header: FrameHeader, frame: &[u8]) -> Frame<'_> {
    let payload_at = HEADER_BYTES + header.envelope_bytes as usize;
    Frame {
        header,
        envelope: &frame[HEADER_BYTES..payload_at],
        payload: &frame[payload_at..header.frame_bytes()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ringtide_schema::frame::Op;

    fn frame(correlation: u64, envelope: &[u8], payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader::new(Op::Ping, 0, correlation, envelope.len(), payload.len());
        [&header.encode()[..], envelope, payload].concat()
    }

    proptest! {
        #[test]
        fn any_cutting_of_a_stream_gives_the_same_frames(
            bodies in prop::collection::vec((0..200usize, 0..9000usize), 1..6),
            cuts in prop::collection::vec(1..700usize, 1..60),
        ) {
            let mut stream = Vec::new();
            for (i, &(e, p)) in bodies.iter().enumerate() {
                stream.extend(frame(i as u64, &vec![1; e], &vec![2; p]));
            }
            let mut assembler = Assembler::new();
            let mut seen = Vec::new();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                if at == stream.len() { break; }
                let end = (at + cut).min(stream.len());
                assembler.feed(&stream[at..end], |f| {
                    seen.push((f.header.correlation, f.envelope.len(), f.payload.len()));
                }).expect("good frames");
                at = end;
            }
            let want: Vec<_> =
                bodies.iter().enumerate().map(|(i, &(e, p))| (i as u64, e, p)).collect();
            prop_assert_eq!(seen, want);
            prop_assert!(!assembler.is_mid_frame());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut assembler = Assembler::new();
            let _ = assembler.feed(&bytes, |_| ());
        }
    }

    #[test]
    fn a_refused_frame_and_all_after_it_are_offered_again() {
        let stream: Vec<u8> = (0..6).flat_map(|i| frame(i, &[1; 10], &[2; 100])).collect();
        for cut in 1..stream.len() {
            let mut assembler = Assembler::new();
            let mut seen = Vec::new();
            let mut refuse = true;
            for piece in [&stream[..cut], &stream[cut..]] {
                assembler
                    .feed_until(piece, |f| {
                        if f.header.correlation == 3 && refuse {
                            return Taken::No;
                        }
                        seen.push(f.header.correlation);
                        Taken::Yes
                    })
                    .expect("good frames");
            }
            assert!(assembler.is_blocked());
            assert_eq!(seen, [0, 1, 2]);
            refuse = false;
            assembler
                .retry(|f| {
                    assert!(!refuse);
                    seen.push(f.header.correlation);
                    Taken::Yes
                })
                .expect("good frames");
            assert_eq!(seen, [0, 1, 2, 3, 4, 5], "cut at {cut}");
        }
    }

    #[test]
    fn what_is_refused_again_and_again_is_offered_once_from_where_it_was_refused() {
        let stream: Vec<u8> = (0..200)
            .flat_map(|i| frame(i, &[1; 10], &[2; 30]))
            .collect();
        let (first, second) = stream.split_at(stream.len() - 100);
        let mut assembler = Assembler::new();
        let mut seen = Vec::new();
        let mut left = 0;
        let mut only_so_many = |f: Frame<'_>, left: &mut u32| {
            if *left == 0 {
                return Taken::No;
            }
            *left -= 1;
            seen.push(f.header.correlation);
            Taken::Yes
        };
        assembler
            .feed_until(first, |f| only_so_many(f, &mut left))
            .expect("good frames");
        let mut rounds = 0;
        while assembler.is_blocked() {
            rounds += 1;
            left = 2;
            assembler
                .retry(|f| only_so_many(f, &mut left))
                .expect("good frames");
            if rounds == 80 {
                assembler
                    .feed_until(second, |f| only_so_many(f, &mut left))
                    .expect("good frames");
                // What was taken is not kept beside what came.
                assert!(assembler.partial.len() < stream.len() / 2);
            }
        }
        assert_eq!(rounds, 100);
        assert_eq!(seen, (0..200).collect::<Vec<u64>>());
        assert!(!assembler.is_mid_frame());
    }

    #[test]
    fn a_long_frame_that_has_only_begun_takes_little_memory() {
        let bytes = frame(1, &[], &vec![0; 4 << 20]);
        let mut assembler = Assembler::new();
        let mut frames = 0;
        for (came, piece) in (1..).zip(bytes.chunks(32 << 10)) {
            assembler
                .feed(piece, |_| frames += 1)
                .expect("a good frame");
            let most = FIRST_BYTES.max(2 * came * (32 << 10));
            assert!(assembler.held_bytes() <= most, "{}", assembler.held_bytes());
        }
        assert_eq!(frames, 1);
    }

    #[test]
    fn a_large_frame_leaves_no_large_buffer_behind() {
        let bytes = frame(1, &[], &vec![0; 1 << 20]);
        let mut assembler = Assembler::new();
        let mut frames = 0;
        for piece in bytes.chunks(100_000) {
            assembler
                .feed(piece, |_| frames += 1)
                .expect("a good frame");
        }
        assert_eq!(frames, 1);
        assert!(
            assembler.held_bytes() <= KEPT_BYTES,
            "{}",
            assembler.held_bytes()
        );
    }
}
