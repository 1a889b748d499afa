//! Faults that are planted to see whether a run finds them. Without one the world keeps every promise of its model.

/// A planted fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Planted {
    /// None.
    #[default]
    Nothing,
    /// A completed write of the log is in the device's cache only.
    LogWithoutSync,
    /// A write of the log is reported as done when it is submitted.
    LogAcknowledgedEarly,
    /// A sync of a segment does nothing.
    SyncDoesNothing,
    /// The directory of a replaced file is not synced.
    NamesNotSynced,
    /// The index of a segment is believed unread.
    IndexBelieved,
    /// Mail between shards is lost now and then.
    MailLost,
    /// A shard that sleeps is not woken by mail now and then.
    WakeLost,
}

impl Planted {
    /// All faults, by name.
    pub const ALL: [(&'static str, Self); 7] = [
        ("log-without-sync", Self::LogWithoutSync),
        ("log-acknowledged-early", Self::LogAcknowledgedEarly),
        ("sync-does-nothing", Self::SyncDoesNothing),
        ("names-not-synced", Self::NamesNotSynced),
        ("index-believed", Self::IndexBelieved),
        ("mail-lost", Self::MailLost),
        ("wake-lost", Self::WakeLost),
    ];
}
