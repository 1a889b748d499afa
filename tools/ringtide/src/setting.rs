//! One setting as written, on its way to being validated: numbers, bytes, choices, and the refusal
//! that names key, value, origin and what would do.

use std::fmt::Display;

use crate::config::ConfigError;
use crate::raw_config::{Origin, Text};

const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// A setting as written, with its name, on its way to being validated.
pub(crate) struct Given<'a> {
    pub(crate) key: &'static str,
    pub(crate) text: Option<&'a Text>,
}

impl Given<'_> {
    pub(crate) fn refuse<T>(&self, need: impl Display) -> Result<T, ConfigError> {
        let (value, origin) = match self.text {
            Some(text) => (text.value.clone(), text.origin.clone()),
            None => ("(not set)".into(), Origin::Default),
        };
        Err(ConfigError::Impossible {
            key: self.key,
            value,
            origin,
            need: need.to_string(),
        })
    }

    pub(crate) fn value(&self) -> Option<&str> {
        self.text.map(|text| text.value.as_str())
    }

    pub(crate) fn number(
        &self,
        default: u64,
        least: u64,
        most: u64,
        unit: &str,
    ) -> Result<u64, ConfigError> {
        let Some(value) = self.value() else {
            return Ok(default);
        };
        match value.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => self.refuse(format_args!("give a number from {least} to {most}{unit}")),
        }
    }

    /// A number of bytes, plain or with KiB, MiB or GiB behind it.
    pub(crate) fn bytes(&self, default: u64, least: u64, most: u64) -> Result<u64, ConfigError> {
        let Some(value) = self.value() else {
            return Ok(default);
        };
        match parse_bytes(value) {
            Some(bytes) if (least..=most).contains(&bytes) => Ok(bytes),
            _ => self.refuse(format_args!(
                "give bytes from {} to {}, as a number or with KiB, MiB or GiB behind it",
                show_bytes(least),
                show_bytes(most)
            )),
        }
    }

    pub(crate) fn choice<T: Copy>(
        &self,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let Some(value) = self.value() else {
            return Ok(default);
        };
        match choices.iter().find(|(name, _)| *name == value) {
            Some((_, choice)) => Ok(*choice),
            None => {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                self.refuse(format_args!("give one of {}", names.join(", ")))
            }
        }
    }
}

/// Reads `4096`, `64KiB`, `256 MiB`, `1GiB`.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let unit = match text[digits..].trim() {
        "" => 1,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

/// The shortest exact way to write a number of bytes.
pub(crate) fn show_bytes(bytes: u64) -> String {
    match bytes {
        b if b >= GIB && b.is_multiple_of(GIB) => format!("{} GiB", b / GIB),
        b if b >= MIB && b.is_multiple_of(MIB) => format!("{} MiB", b / MIB),
        b if b >= KIB && b.is_multiple_of(KIB) => format!("{} KiB", b / KIB),
        b => format!("{b}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_units_and_shown_the_shortest_exact_way() {
        for (text, bytes) in [
            ("7", 7),
            ("4KiB", 4096),
            ("2 GiB", 2 << 30),
            ("64MiB", 64 << 20),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5MiB", "99999999999GiB"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        assert_eq!(show_bytes(1536 << 10), "1536 KiB");
        assert_eq!(show_bytes(4097), "4097");
    }
}
