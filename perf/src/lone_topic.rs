//! A topic that one measurement has for itself: made before, deleted after.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringtide_client::sync::Client;
use ringtide_client::{Idle, Options, PartitionId, TopicSettings, Visibility};

use crate::error::BenchError;

/// How long deleting is tried when the measurement failed: its own error is of more interest.
const GIVE_UP: Duration = Duration::from_secs(2);

/// A topic with one partition and where that is served.
#[derive(Clone, Debug)]
pub struct LoneTopic {
    /// Its name.
    pub name: String,
    /// Its partition.
    pub partition: PartitionId,
    /// HOST:PORT of the shard that owns the partition.
    pub owner: String,
}

/// How clients of a measurement connect: they spin.
pub fn options() -> Options {
    Options::new()
        .client_name(concat!("ringtide-perf/", env!("CARGO_PKG_VERSION")))
        .idle(Idle::Spin)
}

/// A name that no other measurement has: of this process and moment.
#[must_use]
pub fn fresh_name(purpose: &str) -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!(
        "bench-{purpose}-{}-{:x}",
        std::process::id(),
        since.as_micros()
    )
}

impl LoneTopic {
    /// Makes one. Without a name it gets one of its own.
    pub fn create(
        server: &str,
        name: Option<String>,
        visible: Visibility,
    ) -> Result<Self, BenchError> {
        let name = name.unwrap_or_else(|| fresh_name("topic"));
        let client = Client::connect([server], options())?;
        let settings = TopicSettings {
            visible: Some(visible),
            ..TopicSettings::default()
        };
        let topic = client.create_topic(&name, 1, &settings)?;
        let owner = client.owner(&topic, 0)?;
        Ok(Self {
            partition: topic.partition(0),
            name,
            owner,
        })
    }

    /// Deletes it after a measurement, and makes of the measurement's result the whole's: its error
    /// goes first, and says if the topic may have been left behind.
    pub fn delete_after<T>(
        self,
        server: &str,
        result: Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let mut patience = options();
        if result.is_err() {
            patience = patience.call_timeout(GIVE_UP).connect_timeout(GIVE_UP);
        }
        let deleted =
            Client::connect([server], patience).and_then(|client| client.delete_topic(&self.name));
        match (result, deleted) {
            (Ok(value), Ok(())) => Ok(value),
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(_)) => Err(error.leaving(&self.name)),
        }
    }
}
