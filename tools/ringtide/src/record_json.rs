//! A record as a line of JSON, as `consume --output json` prints it.
//!
//! ```json
//! {"partition":0,"offset":7,"timestamp":1700000000000,"key":"ES","value":"42.10","headers":[]}
//! ```
//!
//! What is not UTF-8 is written as base64 (standard alphabet, padded) with a field beside it that
//! says so: `key_encoding`, `value_encoding`. A missing key or value is null. Headers are a list of
//! objects in the record's order, because a key may occur more than once.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// Bytes as text, and how.
struct Text<'a> {
    text: Option<std::borrow::Cow<'a, str>>,
    encoding: Option<&'static str>,
}

fn text(bytes: Option<&[u8]>) -> Text<'_> {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => Text {
            text: None,
            encoding: None,
        },
        Some((Ok(text), _)) => Text {
            text: Some(text.into()),
            encoding: None,
        },
        Some((Err(_), bytes)) => Text {
            text: Some(STANDARD.encode(bytes).into()),
            encoding: Some("base64"),
        },
    }
}

#[derive(Serialize)]
struct Json<'a> {
    partition: u32,
    offset: u64,
    timestamp: i64,
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_encoding: Option<&'static str>,
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_encoding: Option<&'static str>,
    headers: &'a [Header<'a>],
}

#[derive(Serialize)]
struct Header<'a> {
    key: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_encoding: Option<&'static str>,
    value: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_encoding: Option<&'static str>,
}

/// What is printed of a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printed<'a> {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
}

/// Appends the record to `out`, with a newline. Headers are pairs of key and value.
pub(crate) fn write<'a>(
    record: Printed<'a>,
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    out: &mut Vec<u8>,
) {
    let headers: Vec<Header<'_>> = headers
        .map(|(key, value)| {
            let (key, value) = (text(Some(key)), text(value));
            Header {
                key: key.text.unwrap_or_default(),
                key_encoding: key.encoding,
                value: value.text,
                value_encoding: value.encoding,
            }
        })
        .collect();
    let (key, value) = (text(record.key), text(record.value));
    let json = Json {
        partition: record.partition,
        offset: record.offset,
        timestamp: record.timestamp_ms,
        key: key.text.as_deref(),
        key_encoding: key.encoding,
        value: value.text.as_deref(),
        value_encoding: value.encoding,
        headers: &headers,
    };
    serde_json::to_writer(&mut *out, &json).expect("strings and numbers are always JSON");
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) -> String {
        let mut out = Vec::new();
        let record = Printed {
            partition: 3,
            offset: 7,
            timestamp_ms: 1_700_000_000_000,
            key,
            value,
        };
        write(record, headers.iter().copied(), &mut out);
        String::from_utf8(out).expect("JSON is text")
    }

    #[test]
    fn text_is_written_as_it_is() {
        assert_eq!(
            line(Some(b"ES"), Some("4\"2\n€".as_bytes()), &[]),
            "{\"partition\":3,\"offset\":7,\"timestamp\":1700000000000,\"key\":\"ES\",\
             \"value\":\"4\\\"2\\n€\",\"headers\":[]}\n"
        );
    }

    #[test]
    fn what_is_not_utf8_is_base64_and_says_so() {
        let line = line(Some(b"\xff"), Some(b"\x00\xfe"), &[]);
        assert!(
            line.contains("\"key\":\"/w==\",\"key_encoding\":\"base64\""),
            "{line}"
        );
        assert!(
            line.contains("\"value\":\"AP4=\",\"value_encoding\":\"base64\""),
            "{line}"
        );
    }

    #[test]
    fn absent_and_empty_are_told_apart() {
        let line = line(
            None,
            Some(b""),
            &[(b"h", None), (b"h", Some(b"")), (b"b", Some(b"\xff"))],
        );
        assert!(line.contains("\"key\":null,\"value\":\"\""), "{line}");
        let headers = "[{\"key\":\"h\",\"value\":null},{\"key\":\"h\",\"value\":\"\"},\
                       {\"key\":\"b\",\"value\":\"/w==\",\"value_encoding\":\"base64\"}]";
        assert!(line.contains(headers), "{line}");
    }

    #[test]
    fn one_record_is_one_line() {
        let line = line(None, Some(b"a\nb\r\n"), &[]);
        assert_eq!(line.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(json["value"], "a\nb\r\n");
    }
}
