//! The codecs that a record batch may be compressed with.
//!
//! LZ4 (frame format) and Zstandard are spoken; gzip and Snappy are recognised, and refused with a
//! typed error. Inflation never writes past the limit that the caller names, nor does it allocate
//! for a size that compressed bytes merely claim.
//!
//! The LZ4 frame is taken apart here, block by block, rather than by a stream decoder: output goes
//! straight into the caller's buffer, memory is bounded by the caller's limit instead of by the block
//! size in the frame, and a frame that stops before its end mark is an error. Only the block codec
//! is borrowed. Source: LZ4 Frame Format 1.6.4, Kafka's `Lz4BlockOutputStream`.
//!
//! Zstandard is inflated in one pass into the caller's buffer, which spares the window buffer that
//! a stream decoder allocates at a size chosen by whoever wrote the frame.

use std::cell::RefCell;
use std::fmt;

use lz4_flex::block::{self, CompressTable};
use zstd::zstd_safe::{self, CCtx, DCtx, zstd_sys::ZSTD_ErrorCode};

/// How the records of a batch are compressed: bits 0 to 2 of its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Not compressed.
    None = 0,
    /// gzip; recognised, not spoken.
    Gzip = 1,
    /// Snappy; recognised, not spoken.
    Snappy = 2,
    /// LZ4 in the frame format.
    Lz4 = 3,
    /// Zstandard.
    Zstd = 4,
}

impl Codec {
    /// The codec that the attribute bits name, or `None` for the three values without a meaning.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The name that Kafka's configuration uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why bytes could not be compressed or inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A codec that is recognised but not spoken.
    #[error("the codec {codec} is not supported; use none, lz4 or zstd")]
    UnsupportedCodec {
        /// The codec found.
        codec: Codec,
    },
    /// The inflated bytes would pass the limit.
    #[error("inflates to more than the limit of {limit} bytes")]
    TooLarge {
        /// The limit that the caller gave, in bytes.
        limit: usize,
    },
    /// The compressed bytes are not what the codec writes.
    #[error("the {codec} data is corrupt: {why}")]
    Corrupt {
        /// The codec that found it.
        codec: Codec,
        /// What is wrong.
        why: &'static str,
    },
}

/// Zstandard's own default, and Kafka's.
const ZSTD_LEVEL: i32 = 3;
/// A guess at how far an unsized Zstandard frame inflates; a wrong one costs a second pass.
const ZSTD_FIRST_GUESS: usize = 8;

const LZ4_MAGIC: [u8; 4] = 0x184d_2204_u32.to_le_bytes();
/// Version 1, independent blocks, no checksums, no content size: as Kafka's producer writes it.
const LZ4_FLAGS: u8 = 0b0110_0000;
/// Blocks of 64 KiB.
const LZ4_BLOCK_DESCRIPTOR: u8 = 0b0100_0000;
const LZ4_BLOCK_BYTES: usize = 64 << 10;
/// How far back a linked block may refer.
const LZ4_WINDOW_BYTES: usize = 64 << 10;
/// In a block's size: the block is stored, not compressed.
const LZ4_STORED: u32 = 1 << 31;
/// No LZ4 sequence yields more than this for each of its bytes.
const LZ4_MAX_EXPANSION: usize = 255;
/// Magic, two descriptor bytes, their checksum.
const LZ4_HEADER_BYTES: usize = 7;

/// What compressing needs between calls, kept by each thread so that a call allocates nothing.
#[derive(Default)]
struct Contexts {
    lz4: CompressTable,
    zstd_in: CCtx<'static>,
    zstd_out: DCtx<'static>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = RefCell::default();
}

/// The most bytes that [`compress`] appends for `input_bytes` of input.
#[must_use]
pub fn compressed_bound(codec: Codec, input_bytes: usize) -> usize {
    match codec {
        Codec::Lz4 => {
            LZ4_HEADER_BYTES + 4 * (input_bytes.div_ceil(LZ4_BLOCK_BYTES) + 1) + input_bytes
        }
        Codec::Zstd => zstd_safe::compress_bound(input_bytes),
        Codec::None | Codec::Gzip | Codec::Snappy => input_bytes,
    }
}

/// Compresses `input` and appends the result to `out`.
///
/// # Errors
/// [`CodecError::UnsupportedCodec`] for gzip and Snappy. `out` is then as it was.
pub fn compress(codec: Codec, input: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    match codec {
        Codec::None => {
            out.extend_from_slice(input);
            Ok(())
        }
        Codec::Lz4 => CONTEXTS.with_borrow_mut(|contexts| {
            lz4_compress(input, out, &mut contexts.lz4);
            Ok(())
        }),
        Codec::Zstd => {
            CONTEXTS.with_borrow_mut(|contexts| zstd_compress(input, out, &mut contexts.zstd_in))
        }
        Codec::Gzip | Codec::Snappy => Err(CodecError::UnsupportedCodec { codec }),
    }
}

/// Inflates `input` into `out`, replacing what was there; never more than `limit_bytes`.
///
/// # Errors
/// See [`CodecError`]. What `out` then holds is of no use.
pub fn inflate(
    codec: Codec,
    input: &[u8],
    out: &mut Vec<u8>,
    limit_bytes: usize,
) -> Result<(), CodecError> {
    out.clear();
    match codec {
        Codec::None => {
            if input.len() > limit_bytes {
                return Err(CodecError::TooLarge { limit: limit_bytes });
            }
            grow(out, input.len(), limit_bytes);
            out.extend_from_slice(input);
            Ok(())
        }
        Codec::Lz4 => lz4_inflate(input, out, limit_bytes),
        Codec::Zstd => CONTEXTS.with_borrow_mut(|contexts| {
            zstd_inflate(input, out, limit_bytes, &mut contexts.zstd_out)
        }),
        Codec::Gzip | Codec::Snappy => Err(CodecError::UnsupportedCodec { codec }),
    }
}

/// Makes room for `len` bytes in all: geometric as a `Vec` is, but not beyond the limit.
fn grow(out: &mut Vec<u8>, len: usize, limit_bytes: usize) {
    debug_assert!(len <= limit_bytes, "room is never asked for past the limit");
    if len > out.capacity() {
        let capacity = len.max(out.capacity().saturating_mul(2)).min(limit_bytes);
        out.reserve_exact(capacity - out.len());
    }
}

fn zstd_corrupt(why: &'static str) -> CodecError {
    CodecError::Corrupt {
        codec: Codec::Zstd,
        why,
    }
}

fn zstd_compress(
    input: &[u8],
    out: &mut Vec<u8>,
    context: &mut CCtx<'static>,
) -> Result<(), CodecError> {
    let start = out.len();
    out.resize(start + zstd_safe::compress_bound(input.len()), 0);
    match context.compress(&mut out[start..], input, ZSTD_LEVEL) {
        Ok(written) => {
            out.truncate(start + written);
            Ok(())
        }
        Err(code) => {
            out.truncate(start);
            Err(zstd_corrupt(zstd_safe::get_error_name(code)))
        }
    }
}

fn zstd_inflate(
    input: &[u8],
    out: &mut Vec<u8>,
    limit_bytes: usize,
    context: &mut DCtx<'static>,
) -> Result<(), CodecError> {
    let too_large = CodecError::TooLarge { limit: limit_bytes };
    if input.is_empty() {
        return Err(zstd_corrupt("no frame"));
    }
    let first_guess = match zstd_safe::get_frame_content_size(input) {
        Ok(Some(bytes)) => match usize::try_from(bytes) {
            Ok(bytes) if bytes <= limit_bytes => bytes,
            _ => return Err(too_large),
        },
        Ok(None) => input.len().saturating_mul(ZSTD_FIRST_GUESS),
        Err(_) => return Err(zstd_corrupt("the frame header is malformed")),
    };
    grow(out, first_guess.min(limit_bytes), limit_bytes);
    loop {
        match context.decompress(out, input) {
            Ok(written) if written <= limit_bytes => return Ok(()),
            Ok(_) => return Err(too_large),
            Err(code) if zstd_output_was_too_small(code) => {
                if out.capacity() >= limit_bytes {
                    return Err(too_large);
                }
                let wanted = out.capacity().max(1 << 10).saturating_mul(4);
                grow(out, wanted.min(limit_bytes), limit_bytes);
            }
            Err(code) => return Err(zstd_corrupt(zstd_safe::get_error_name(code))),
        }
    }
}

/// Zstandard returns an error as the negated number of the error, in the type of a size.
fn zstd_output_was_too_small(code: usize) -> bool {
    code == (ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall as usize).wrapping_neg()
}

fn lz4_corrupt(why: &'static str) -> CodecError {
    CodecError::Corrupt {
        codec: Codec::Lz4,
        why,
    }
}

fn lz4_compress(input: &[u8], out: &mut Vec<u8>, table: &mut CompressTable) {
    // The block codec wants room for its worst case, of which only the last block's lasts.
    let last_block = block::get_maximum_output_size(input.len().min(LZ4_BLOCK_BYTES));
    out.reserve(compressed_bound(Codec::Lz4, input.len()) + last_block);
    let descriptor = [LZ4_FLAGS, LZ4_BLOCK_DESCRIPTOR];
    out.extend_from_slice(&LZ4_MAGIC);
    out.extend_from_slice(&descriptor);
    out.push(lz4_header_checksum(&descriptor));
    for chunk in input.chunks(LZ4_BLOCK_BYTES) {
        let size_at = out.len();
        let data_at = size_at + 4;
        out.resize(data_at + block::get_maximum_output_size(chunk.len()), 0);
        let compressed = block::compress_into_with_table(chunk, &mut out[data_at..], table);
        // A block that does not shrink is stored as it is.
        let size = match compressed {
            Ok(written) if written < chunk.len() => {
                out.truncate(data_at + written);
                written as u32
            }
            Ok(_) | Err(_) => {
                out.truncate(data_at);
                out.extend_from_slice(chunk);
                chunk.len() as u32 | LZ4_STORED
            }
        };
        out[size_at..data_at].copy_from_slice(&size.to_le_bytes());
    }
    out.extend_from_slice(&0_u32.to_le_bytes());
}

/// The descriptor of an LZ4 frame.
struct Lz4Frame {
    linked_blocks: bool,
    block_checksums: bool,
    content_checksum: bool,
    content_bytes: Option<u64>,
    max_block_bytes: usize,
}

impl Lz4Frame {
    fn parse(input: &mut &[u8]) -> Result<Self, CodecError> {
        if lz4_take::<4>(input)? != LZ4_MAGIC {
            return Err(lz4_corrupt("no frame magic"));
        }
        let whole = *input;
        let [flags, block] = lz4_take::<2>(input)?;
        if flags >> 6 != 1 || flags & 0b10 != 0 || block & 0b1000_1111 != 0 {
            return Err(lz4_corrupt("the frame is of an unknown version"));
        }
        if flags & 1 != 0 {
            return Err(lz4_corrupt("the frame wants a dictionary"));
        }
        let max_block_bytes = match block >> 4 {
            4 => 64 << 10,
            5 => 256 << 10,
            6 => 1 << 20,
            7 => 4 << 20,
            _ => return Err(lz4_corrupt("the block size is not one of the format")),
        };
        let content_bytes = if flags & 0b1000 == 0 {
            None
        } else {
            Some(u64::from_le_bytes(lz4_take(input)?))
        };
        let descriptor = &whole[..whole.len() - input.len()];
        if lz4_take::<1>(input)? != [lz4_header_checksum(descriptor)] {
            return Err(lz4_corrupt("the frame header fails its checksum"));
        }
        Ok(Self {
            linked_blocks: flags & 0b10_0000 == 0,
            block_checksums: flags & 0b1_0000 != 0,
            content_checksum: flags & 0b100 != 0,
            content_bytes,
            max_block_bytes,
        })
    }
}

fn lz4_inflate(mut input: &[u8], out: &mut Vec<u8>, limit_bytes: usize) -> Result<(), CodecError> {
    let too_large = CodecError::TooLarge { limit: limit_bytes };
    let frame = Lz4Frame::parse(&mut input)?;
    if frame
        .content_bytes
        .is_some_and(|bytes| bytes > limit_bytes as u64)
    {
        return Err(too_large);
    }
    loop {
        let size = u32::from_le_bytes(lz4_take(&mut input)?);
        if size == 0 {
            break;
        }
        let block_bytes = (size & !LZ4_STORED) as usize;
        if block_bytes > frame.max_block_bytes {
            return Err(lz4_corrupt("a block is larger than the frame allows"));
        }
        let Some((block, rest)) = input.split_at_checked(block_bytes) else {
            return Err(LZ4_CUT_SHORT);
        };
        input = rest;
        if frame.block_checksums && u32::from_le_bytes(lz4_take(&mut input)?) != xxh32(block) {
            return Err(lz4_corrupt("a block fails its checksum"));
        }

        let filled = out.len();
        let allowed = limit_bytes - filled;
        if size & LZ4_STORED != 0 {
            if block.len() > allowed {
                return Err(too_large);
            }
            grow(out, filled + block.len(), limit_bytes);
            out.extend_from_slice(block);
            continue;
        }
        let could_be = frame
            .max_block_bytes
            .min(block.len().saturating_mul(LZ4_MAX_EXPANSION));
        let room = could_be.min(allowed);
        grow(out, filled + room, limit_bytes);
        out.resize(filled + room, 0);
        let (before, output) = out.split_at_mut(filled);
        let inflated = if frame.linked_blocks {
            let window = &before[filled.saturating_sub(LZ4_WINDOW_BYTES)..];
            block::decompress_into_with_dict(block, output, window)
        } else {
            block::decompress_into(block, output)
        };
        match inflated {
            Ok(written) => out.truncate(filled + written),
            Err(block::DecompressError::OutputTooSmall { .. }) if room < could_be => {
                return Err(too_large);
            }
            Err(_) => return Err(lz4_corrupt("a block is malformed")),
        }
    }
    if frame
        .content_bytes
        .is_some_and(|bytes| bytes != out.len() as u64)
    {
        return Err(lz4_corrupt(
            "the content is not of the size the frame declares",
        ));
    }
    if frame.content_checksum && u32::from_le_bytes(lz4_take(&mut input)?) != xxh32(out) {
        return Err(lz4_corrupt("the content fails its checksum"));
    }
    if !input.is_empty() {
        return Err(lz4_corrupt("bytes follow the end of the frame"));
    }
    Ok(())
}

const LZ4_CUT_SHORT: CodecError = CodecError::Corrupt {
    codec: Codec::Lz4,
    why: "the frame stops before its end",
};

fn lz4_take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], CodecError> {
    let (taken, rest) = input.split_first_chunk().ok_or(LZ4_CUT_SHORT)?;
    *input = rest;
    Ok(*taken)
}

/// The second byte of the descriptor's hash.
fn lz4_header_checksum(descriptor: &[u8]) -> u8 {
    (xxh32(descriptor) >> 8) as u8
}

/// XXH32 with seed 0, the checksum of the LZ4 frame. Source: xxHash specification 0.1.1.
fn xxh32(bytes: &[u8]) -> u32 {
    const P1: u32 = 0x9e37_79b1;
    const P2: u32 = 0x85eb_ca77;
    const P3: u32 = 0xc2b2_ae3d;
    const P4: u32 = 0x27d4_eb2f;
    const P5: u32 = 0x1656_67b1;

    let (stripes, rest) = bytes.as_chunks::<16>();
    let mut hash = if stripes.is_empty() {
        P5
    } else {
        let mut lanes = [P1.wrapping_add(P2), P2, 0, 0_u32.wrapping_sub(P1)];
        for stripe in stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.as_chunks::<4>().0) {
                *lane = lane
                    .wrapping_add(u32::from_le_bytes(*word).wrapping_mul(P2))
                    .rotate_left(13)
                    .wrapping_mul(P1);
            }
        }
        let [a, b, c, d] = lanes;
        a.rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18))
    };
    hash = hash.wrapping_add(bytes.len() as u32);
    let (words, tail) = rest.as_chunks::<4>();
    for word in words {
        hash = hash
            .wrapping_add(u32::from_le_bytes(*word).wrapping_mul(P3))
            .rotate_left(17)
            .wrapping_mul(P4);
    }
    for &byte in tail {
        hash = hash
            .wrapping_add(u32::from(byte).wrapping_mul(P5))
            .rotate_left(11)
            .wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 15)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 13)).wrapping_mul(P3);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

    use super::*;

    #[test]
    fn xxh32_gives_the_published_values() {
        assert_eq!(xxh32(b""), 0x02cc_5d05);
        assert_eq!(xxh32(b"a"), 0x550d_7456);
        assert_eq!(xxh32(b"abc"), 0x32d1_53ff);
        assert_eq!(
            xxh32(b"Nobody inspects the spammish repetition"),
            0xe229_3b2f
        );
    }

    /// Text that compresses, noise that does not, and repetition, across several blocks.
    fn sample(bytes: usize) -> Vec<u8> {
        let mut state = 1_u32;
        (0..bytes)
            .map(|index| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match (index >> 13) % 3 {
                    0 => b"tide and time "[index % 14],
                    1 => (state >> 24) as u8,
                    _ => 0,
                }
            })
            .collect()
    }

    const SIZES: [usize; 8] = [0, 1, 12, 1000, 65_535, 65_536, 65_537, 300_000];

    fn inflated(codec: Codec, input: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mut out = vec![1, 2, 3];
        inflate(codec, input, &mut out, 1 << 20).map(|()| out)
    }

    #[test]
    fn what_was_compressed_inflates_within_the_bound_and_leaves_what_was_there() {
        for (codec, size) in [Codec::None, Codec::Lz4, Codec::Zstd]
            .into_iter()
            .flat_map(|codec| SIZES.map(|size| (codec, size)))
        {
            let input = sample(size);
            let mut out = vec![7; 3];
            compress(codec, &input, &mut out).expect("it is spoken");
            assert_eq!(out[..3], [7; 3]);
            assert!(
                out.len() - 3 <= compressed_bound(codec, size),
                "{codec} {size}"
            );
            assert_eq!(inflated(codec, &out[3..]), Ok(input));
        }
    }

    #[test]
    fn noise_grows_no_further_than_the_bound() {
        let mut state = 7_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .take(200_000)
        .collect();
        for codec in [Codec::Lz4, Codec::Zstd] {
            let mut out = Vec::new();
            compress(codec, &noise, &mut out).expect("it is spoken");
            assert!(out.len() > noise.len() && out.len() <= compressed_bound(codec, noise.len()));
            assert_eq!(inflated(codec, &out), Ok(noise.clone()));
        }
    }

    #[test]
    fn a_frame_opens_as_kafka_producers_open_it() {
        let mut out = Vec::new();
        compress(Codec::Lz4, b"", &mut out).expect("lz4 is supported");
        assert_eq!(out, [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82, 0, 0, 0, 0]);
    }

    /// Every shape of LZ4 frame that another writer makes of `input`.
    fn foreign_frames(input: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for block_mode in [BlockMode::Independent, BlockMode::Linked] {
            for block_size in [
                BlockSize::Max64KB,
                BlockSize::Max256KB,
                BlockSize::Max1MB,
                BlockSize::Max4MB,
            ] {
                for checks in 0..8 {
                    let info = FrameInfo::new()
                        .block_mode(block_mode)
                        .block_size(block_size)
                        .block_checksums(checks & 1 != 0)
                        .content_checksum(checks & 2 != 0)
                        .content_size((checks & 4 != 0).then_some(input.len() as u64));
                    let mut writer = FrameEncoder::with_frame_info(info, Vec::new());
                    writer.write_all(input).expect("memory takes it all");
                    frames.push(writer.finish().expect("memory takes it all"));
                }
            }
        }
        frames
    }

    #[test]
    fn every_shape_of_lz4_frame_is_read() {
        for input in SIZES.map(sample) {
            for frame in foreign_frames(&input) {
                assert!(
                    inflated(Codec::Lz4, &frame).as_ref() == Ok(&input),
                    "{:x?}",
                    &frame[..7]
                );
            }
        }
    }

    #[test]
    fn our_lz4_frames_are_read_elsewhere() {
        for input in SIZES.map(sample) {
            let mut frame = Vec::new();
            compress(Codec::Lz4, &input, &mut frame).expect("lz4 is supported");
            let mut read = Vec::new();
            FrameDecoder::new(&frame[..])
                .read_to_end(&mut read)
                .expect("it is a frame");
            assert!(read == input);
        }
    }

    #[test]
    fn a_frame_cut_short_or_followed_by_more_is_corrupt() {
        let input = sample(1000);
        let mut frames = foreign_frames(&input);
        let mut ours = Vec::new();
        compress(Codec::Lz4, &input, &mut ours).expect("lz4 is supported");
        frames.push(ours);
        for frame in frames {
            for end in 0..frame.len() {
                assert_eq!(
                    inflated(Codec::Lz4, &frame[..end]),
                    Err(LZ4_CUT_SHORT),
                    "at {end}"
                );
            }
            let more = [&frame[..], &[0]].concat();
            assert!(matches!(
                inflated(Codec::Lz4, &more),
                Err(CodecError::Corrupt { .. })
            ));
        }
    }

    #[test]
    fn a_zstd_frame_cut_short_or_followed_by_noise_is_corrupt_and_by_another_is_not() {
        let mut frame = Vec::new();
        compress(Codec::Zstd, b"one two three", &mut frame).expect("zstd is supported");
        for end in 0..frame.len() {
            let cut = inflated(Codec::Zstd, &frame[..end]);
            assert!(matches!(cut, Err(CodecError::Corrupt { .. })), "at {end}");
        }
        let noise = inflated(Codec::Zstd, &[&frame[..], &[0]].concat());
        assert!(matches!(noise, Err(CodecError::Corrupt { .. })));
        let twice = inflated(Codec::Zstd, &[&frame[..], &frame].concat());
        assert_eq!(twice.as_deref(), Ok(&b"one two threeone two three"[..]));
    }

    #[test]
    fn checksums_of_header_block_and_content_are_each_checked() {
        let info = FrameInfo::new()
            .block_checksums(true)
            .content_checksum(true);
        let mut writer = FrameEncoder::with_frame_info(info, Vec::new());
        writer.write_all(b"abc").expect("memory takes it all");
        let frame = writer.finish().expect("memory takes it all");
        let why = |at: usize| {
            let mut frame = frame.clone();
            frame[at] ^= 1;
            match inflated(Codec::Lz4, &frame) {
                Err(CodecError::Corrupt { why, .. }) => why,
                other => panic!("not found to be corrupt: {other:?}"),
            }
        };
        assert_eq!(why(6), "the frame header fails its checksum");
        let block = LZ4_HEADER_BYTES + 4;
        assert_eq!(why(block), "a block fails its checksum");
        assert_eq!(why(frame.len() - 1), "the content fails its checksum");
    }

    #[test]
    fn a_claimed_size_allocates_nothing_beyond_the_limit() {
        let info = FrameInfo::new()
            .content_size(Some(1 << 40))
            .block_size(BlockSize::Max4MB);
        let mut writer = FrameEncoder::with_frame_info(info, Vec::new());
        writer.write_all(b"abc").expect("memory takes it all");
        let lz4 = writer.into_inner();
        // A Zstandard header: magic, eight bytes of content size follow, single segment; the size.
        let zstd = [
            &[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..],
            &(1_u64 << 40).to_le_bytes(),
        ]
        .concat();
        for (codec, input) in [(Codec::Lz4, lz4), (Codec::Zstd, zstd)] {
            let mut out = Vec::new();
            let error = inflate(codec, &input, &mut out, 5000).map(|()| out.len());
            assert_eq!(error, Err(CodecError::TooLarge { limit: 5000 }), "{codec}");
            assert_eq!(out.capacity(), 0);
        }
    }
}
