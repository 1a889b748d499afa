//! The payloads of log entries that are not batches, behind a byte that says which: changes of topics, offsets
//! of consumers.
//!
//! What is taken survives being written and read again; a topic's settings that are accepted are possible.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::bounded;
use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset, root};
use ringtide_schema::limits::{MAX_BATCH_BYTES, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES};
use ringtide_schema::store::{CommitOffset, MetaEntry, TopicT};
use ringtide_schema::topic::TopicConfig;

fn written<T>(pack: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let root = pack(&mut builder);
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

fn settings(topic: &TopicT) {
    if let Ok(config) = TopicConfig::from_store(&topic.config) {
        assert!((MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&config.segment_bytes));
        assert!(config.max_batch_bytes as usize <= MAX_BATCH_BYTES);
        assert_eq!(TopicConfig::from_store(&config.to_store()), Ok(config));
    }
}

fn meta(bytes: &[u8]) {
    if bounded(4096, || root::<MetaEntry<'_>>(bytes).is_err()) {
        return;
    }
    let entry = root::<MetaEntry<'_>>(bytes)
        .expect("verified before")
        .unpack();
    let again = written(|builder| entry.pack(builder));
    assert_eq!(
        root::<MetaEntry<'_>>(&again)
            .expect("just written")
            .unpack(),
        entry
    );
    entry.created.as_deref().into_iter().for_each(settings);
    entry.altered.as_deref().into_iter().for_each(settings);
}

fn offset(bytes: &[u8]) {
    if bounded(4096, || root::<CommitOffset<'_>>(bytes).is_err()) {
        return;
    }
    let commit = root::<CommitOffset<'_>>(bytes)
        .expect("verified before")
        .unpack();
    let again = written(|builder| commit.pack(builder));
    assert_eq!(
        root::<CommitOffset<'_>>(&again)
            .expect("just written")
            .unpack(),
        commit
    );
}

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((0, bytes)) => meta(bytes),
        Some((_, bytes)) => offset(bytes),
        None => {}
    }
});
