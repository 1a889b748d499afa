//! Standard input cut into records, a line each.
//!
//! A line ends with a newline, which is not part of it; nothing else is special, so bytes that are
//! not text pass through, and so does a carriage return. An unterminated last line counts, an empty
//! line is an empty record, and nothing at all is no record. Lines are numbered from 1.

use memchr::memchr;
use memchr::memmem;

/// What one line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Counted from 1.
    pub(crate) number: u64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: &'a [u8],
}

/// Why a line is not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    /// There is no key.
    #[error("line {number} lacks the key separator {separator:?}")]
    NoSeparator { number: u64, separator: String },
    /// Larger than any batch may be.
    #[error("line {number} is over the limit of {limit} bytes")]
    TooLong { number: u64, limit: usize },
}

/// Cuts input into lines, whatever the pieces it arrives in.
pub(crate) struct Splitter {
    separator: Option<String>,
    finder: Option<memmem::Finder<'static>>,
    limit: usize,
    /// The beginning of a line whose end has not arrived.
    begun: Vec<u8>,
    /// Lines that ended.
    lines: u64,
}

impl Splitter {
    /// Lines may have `limit` bytes; with a separator each line is a key and a value.
    pub(crate) fn new(separator: Option<&str>, limit: usize) -> Self {
        Self {
            separator: separator.map(Into::into),
            finder: separator.map(|s| memmem::Finder::new(s.as_bytes()).into_owned()),
            limit,
            begun: Vec::new(),
            lines: 0,
        }
    }

    /// Gives every line that ends in `input` to `each`, until that or a line fails.
    pub(crate) fn feed<E: From<LineError>>(
        &mut self,
        mut input: &[u8],
        mut each: impl FnMut(Line<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = memchr(b'\n', input) {
            let (line, rest) = (&input[..end], &input[end + 1..]);
            if self.begun.is_empty() {
                self.line(line, &mut each)?;
            } else {
                self.begin(line)?;
                let line = std::mem::take(&mut self.begun);
                self.line(&line, &mut each)?;
                self.begun = line;
                self.begun.clear();
            }
            input = rest;
        }
        Ok(self.begin(input)?)
    }

    /// The input ended: gives the unterminated last line, if there is one, to `each`.
    pub(crate) fn end<E: From<LineError>>(
        &mut self,
        mut each: impl FnMut(Line<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.begun.is_empty() {
            return Ok(());
        }
        let line = std::mem::take(&mut self.begun);
        self.line(&line, &mut each)
    }

    /// The number of the line whose end has not arrived, if there is one.
    pub(crate) fn begun_line(&self) -> Option<u64> {
        (!self.begun.is_empty()).then_some(self.lines + 1)
    }

    fn begin(&mut self, part: &[u8]) -> Result<(), LineError> {
        if self.begun.len() + part.len() > self.limit {
            return Err(LineError::TooLong {
                number: self.lines + 1,
                limit: self.limit,
            });
        }
        self.begun.extend_from_slice(part);
        Ok(())
    }

    fn line<E: From<LineError>>(
        &mut self,
        bytes: &[u8],
        each: &mut impl FnMut(Line<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let number = self.lines + 1;
        if bytes.len() > self.limit {
            return Err(LineError::TooLong {
                number,
                limit: self.limit,
            }
            .into());
        }
        let (key, value) = match (&self.finder, &self.separator) {
            (Some(finder), Some(separator)) => match finder.find(bytes) {
                Some(at) => (Some(&bytes[..at]), &bytes[at + separator.len()..]),
                None => {
                    let separator = separator.clone();
                    return Err(LineError::NoSeparator { number, separator }.into());
                }
            },
            _ => (None, bytes),
        };
        self.lines = number;
        each(Line { number, key, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Owned = (u64, Option<Vec<u8>>, Vec<u8>);

    /// The lines of `input` when it arrives in pieces of `piece` bytes, and how it ended.
    fn split(
        input: &[u8],
        separator: Option<&str>,
        limit: usize,
        piece: usize,
    ) -> (Vec<Owned>, Result<(), LineError>) {
        let mut splitter = Splitter::new(separator, limit);
        let mut lines = Vec::new();
        let mut each = |line: Line<'_>| {
            lines.push((line.number, line.key.map(Into::into), line.value.into()));
            Ok::<(), LineError>(())
        };
        let mut result = Ok(());
        for part in input.chunks(piece) {
            result = result.and_then(|()| splitter.feed(part, &mut each));
        }
        result = result.and_then(|()| splitter.end(&mut each));
        (lines, result)
    }

    fn values(input: &[u8]) -> Vec<Vec<u8>> {
        let whole = split(input, None, 100, usize::MAX);
        for piece in 1..input.len() {
            assert_eq!(
                split(input, None, 100, piece),
                whole,
                "in pieces of {piece}"
            );
        }
        assert_eq!(whole.1, Ok(()));
        whole.0.into_iter().map(|(_, _, value)| value).collect()
    }

    #[test]
    fn a_line_is_a_record_whether_terminated_empty_or_not_text() {
        assert!(values(b"").is_empty());
        assert_eq!(values(b"a\nb\n"), [b"a", b"b"]);
        assert_eq!(values(b"a\nb"), [b"a", b"b"]);
        assert_eq!(values(b"\n\nx\n\n"), [b"".as_slice(), b"", b"x", b""]);
        assert_eq!(values(b"a\r\n\xff\0\n"), [b"a\r".as_slice(), b"\xff\0"]);
    }

    #[test]
    fn a_line_is_begun_until_its_end_arrives() {
        let mut splitter = Splitter::new(None, 8);
        let mut feed = |input: &[u8]| {
            splitter
                .feed(input, |_| Ok::<(), LineError>(()))
                .expect("short lines");
            splitter.begun_line()
        };
        assert_eq!(feed(b""), None);
        assert_eq!(feed(b"a\nb"), Some(2));
        assert_eq!(feed(b"b"), Some(2));
        assert_eq!(feed(b"\n"), None);
    }

    #[test]
    fn the_first_separator_ends_the_key() {
        for piece in [1, 3, 100] {
            let (lines, result) = split(b"k=v=w\n=\nx=", Some("="), 100, piece);
            assert_eq!(result, Ok(()));
            let expected: [(u64, &[u8], &[u8]); 3] =
                [(1, b"k", b"v=w"), (2, b"", b""), (3, b"x", b"")];
            let expected = expected.map(|(n, k, v)| (n, Some(k.to_vec()), v.to_vec()));
            assert_eq!(lines, expected);
        }
    }

    #[test]
    fn a_line_without_the_separator_is_named_and_those_before_it_count() {
        for input in [b"a::1\nb\nc::3\n".as_slice(), b"a::1\nb:"] {
            let (lines, result) = split(input, Some("::"), 100, 2);
            assert_eq!(lines.len(), 1);
            let error = LineError::NoSeparator {
                number: 2,
                separator: "::".into(),
            };
            assert_eq!(result, Err(error));
        }
    }

    #[test]
    fn a_line_over_the_limit_is_named_without_being_kept() {
        for piece in [1, 4, 1000] {
            let (lines, result) = split(b"12345678\n123456789\n", None, 8, piece);
            assert_eq!(lines.len(), 1);
            assert_eq!(
                result,
                Err(LineError::TooLong {
                    number: 2,
                    limit: 8
                })
            );
        }
        let mut splitter = Splitter::new(None, 8);
        for _ in 0..100 {
            let _ = splitter.feed(b"123", |_| Ok::<(), LineError>(()));
        }
        assert!(splitter.begun.capacity() <= 64);
    }
}
