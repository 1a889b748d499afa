//! A topic's name and settings: what is legal, and the defaults.

use crate::limits::{
    MAX_BATCH_BYTES, MAX_CONSUMER_NAME_BYTES, MAX_SEGMENT_BYTES, MAX_TOPIC_NAME_BYTES,
    MIN_SEGMENT_BYTES,
};
use crate::store::TopicConfigT;
use crate::wire::TopicSettingsT;

/// When a consumer is given a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Visibility {
    /// Once it is on stable storage.
    Durable = 0,
    /// Once it is in the broker's memory.
    Accepted = 1,
}

/// Whose clock a record's timestamp is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TimestampType {
    /// The publisher's.
    Create = 0,
    /// The broker's, at append.
    Append = 1,
}

/// The settings of a topic, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// Records older than this many milliseconds may be removed; `None`: kept for ever.
    pub retention_ms: Option<u64>,
    /// A partition larger than this many bytes loses its oldest segments; `None`: without bound.
    pub retention_bytes: Option<u64>,
    /// A segment is sealed before it grows past this many bytes.
    pub segment_bytes: u32,
    /// When a consumer is given a batch.
    pub visible: Visibility,
    /// The largest batch, in bytes.
    pub max_batch_bytes: u32,
    /// Whose clock timestamps are.
    pub timestamp_type: TimestampType,
    /// How far ahead of the broker's clock a publisher's timestamp may be; `None`: without bound.
    pub timestamp_max_ahead_ms: Option<u64>,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            retention_ms: Some(7 * 24 * 3600 * 1000),
            retention_bytes: None,
            segment_bytes: 256 << 20,
            visible: Visibility::Durable,
            max_batch_bytes: MAX_BATCH_BYTES as u32,
            timestamp_type: TimestampType::Create,
            timestamp_max_ahead_ms: Some(3600 * 1000),
        }
    }
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value} is impossible: {need}")]
pub struct SettingError {
    /// Which setting.
    pub key: &'static str,
    /// As given.
    pub value: i64,
    /// What would do.
    pub need: String,
}

fn bad<T>(key: &'static str, value: i64, need: impl Into<String>) -> Result<T, SettingError> {
    Err(SettingError {
        key,
        value,
        need: need.into(),
    })
}

fn optional(key: &'static str, value: i64) -> Result<Option<u64>, SettingError> {
    match value {
        -1 => Ok(None),
        0.. => Ok(Some(value as u64)),
        _ => bad(key, value, "a number from 0 up, or -1 for no bound"),
    }
}

fn to_optional(value: Option<u64>) -> i64 {
    value.map_or(-1, |v| i64::try_from(v).unwrap_or(i64::MAX))
}

impl TopicConfig {
    /// These settings with the ones that `change` names replaced.
    pub fn with(mut self, change: &TopicSettingsT) -> Result<Self, SettingError> {
        if let Some(v) = change.retention_ms {
            self.retention_ms = optional("retention-ms", v)?;
        }
        if let Some(v) = change.retention_bytes {
            self.retention_bytes = optional("retention-bytes", v)?;
        }
        if let Some(v) = change.segment_bytes {
            if !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&v) {
                let need = format!("from {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES} bytes");
                return bad("segment-bytes", i64::from(v), need);
            }
            self.segment_bytes = v;
        }
        if let Some(v) = change.visible {
            self.visible = match v {
                0 => Visibility::Durable,
                1 => Visibility::Accepted,
                _ => return bad("visible", i64::from(v), "0 (durable) or 1 (accepted)"),
            };
        }
        if let Some(v) = change.max_batch_bytes {
            if v < 256 || v as usize > MAX_BATCH_BYTES {
                let need = format!("from 256 to {MAX_BATCH_BYTES} bytes");
                return bad("max-batch-bytes", i64::from(v), need);
            }
            self.max_batch_bytes = v;
        }
        if let Some(v) = change.timestamp_type {
            self.timestamp_type = match v {
                0 => TimestampType::Create,
                1 => TimestampType::Append,
                _ => return bad("timestamp-type", i64::from(v), "0 (create) or 1 (append)"),
            };
        }
        if let Some(v) = change.timestamp_max_ahead_ms {
            self.timestamp_max_ahead_ms = optional("timestamp-max-ahead-ms", v)?;
        }
        Ok(self)
    }

    /// Every setting as it goes over the wire.
    pub fn to_wire(&self) -> TopicSettingsT {
        TopicSettingsT {
            retention_ms: Some(to_optional(self.retention_ms)),
            retention_bytes: Some(to_optional(self.retention_bytes)),
            segment_bytes: Some(self.segment_bytes),
            visible: Some(self.visible as u8),
            max_batch_bytes: Some(self.max_batch_bytes),
            timestamp_type: Some(self.timestamp_type as u8),
            timestamp_max_ahead_ms: Some(to_optional(self.timestamp_max_ahead_ms)),
        }
    }

    /// Every setting as it is stored.
    pub fn to_store(&self) -> TopicConfigT {
        TopicConfigT {
            retention_ms: to_optional(self.retention_ms),
            retention_bytes: to_optional(self.retention_bytes),
            segment_bytes: self.segment_bytes,
            visible: self.visible as u8,
            max_batch_bytes: self.max_batch_bytes,
            timestamp_type: self.timestamp_type as u8,
            timestamp_max_ahead_ms: to_optional(self.timestamp_max_ahead_ms),
        }
    }

    /// The stored settings, checked.
    pub fn from_store(stored: &TopicConfigT) -> Result<Self, SettingError> {
        Self::default().with(&TopicSettingsT {
            retention_ms: Some(stored.retention_ms),
            retention_bytes: Some(stored.retention_bytes),
            segment_bytes: Some(stored.segment_bytes),
            visible: Some(stored.visible),
            max_batch_bytes: Some(stored.max_batch_bytes),
            timestamp_type: Some(stored.timestamp_type),
            timestamp_max_ahead_ms: Some(stored.timestamp_max_ahead_ms),
        })
    }
}

/// Why a name is not legal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, `.` or `..`.
    #[error("a name must not be empty, \".\" or \"..\"")]
    Reserved,
    /// Over the bound.
    #[error("a name of {bytes} bytes is over the limit of {limit}")]
    Long {
        /// Of the name.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// Something else than letters, digits, dot, underscore, hyphen.
    #[error("{0:?} is not allowed in a name; use ASCII letters, digits, '.', '_' and '-'")]
    Character(char),
}

fn check_name(name: &str, limit: usize) -> Result<(), NameError> {
    if matches!(name, "" | "." | "..") {
        return Err(NameError::Reserved);
    }
    if name.len() > limit {
        return Err(NameError::Long {
            bytes: name.len(),
            limit,
        });
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|&c| !legal(c)) {
        Some(c) => Err(NameError::Character(c)),
        None => Ok(()),
    }
}

/// Whether a topic may have this name (the rules are Kafka's, so that its clients can reach it).
pub fn check_topic_name(name: &str) -> Result<(), NameError> {
    check_name(name, MAX_TOPIC_NAME_BYTES)
}

/// Whether a consumer may have this name.
pub fn check_consumer_name(name: &str) -> Result<(), NameError> {
    check_name(name, MAX_CONSUMER_NAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_wire_and_the_disk() {
        let config = TopicConfig {
            retention_ms: None,
            retention_bytes: Some(5),
            segment_bytes: 1 << 20,
            visible: Visibility::Accepted,
            max_batch_bytes: 4096,
            timestamp_type: TimestampType::Append,
            timestamp_max_ahead_ms: None,
        };
        assert_eq!(TopicConfig::default().with(&config.to_wire()), Ok(config));
        assert_eq!(TopicConfig::from_store(&config.to_store()), Ok(config));
    }

    #[test]
    fn an_impossible_setting_names_its_key_and_what_would_do() {
        let change = TopicSettingsT {
            segment_bytes: Some(1),
            ..TopicSettingsT::default()
        };
        let error = TopicConfig::default().with(&change).expect_err("too small");
        assert_eq!(error.key, "segment-bytes");
        assert!(error.to_string().contains("from 4096"), "{error}");
    }

    #[test]
    fn names_with_path_characters_are_illegal() {
        for name in ["", ".", "..", "a/b", "a\0", "ü", &"x".repeat(250)] {
            assert!(check_topic_name(name).is_err(), "{name:?}");
        }
        assert_eq!(check_topic_name("orders.es-mini_1"), Ok(()));
    }
}
