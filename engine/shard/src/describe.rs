//! What a shard says about itself: what it was told of its host at the start, and its counters. It is
//! answered by the shard whose connection asks; nothing here is counted for the answer's sake on the
//! path of a message.

use ringtide_io::Now;
use ringtide_io::buffer::CHUNK_BYTES;
use ringtide_schema::frame::{FLAG_RESPONSE, Op};
use ringtide_schema::wire;
use ringtide_session::{Frame, envelope};

use crate::Shard;
use crate::fault::Fault;
use crate::requests::{Handled, bad_envelope};
use crate::session::SessionKey;

impl Shard {
    pub(crate) fn describe_shard(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        now: Now,
    ) -> Result<Handled, Fault> {
        envelope::<wire::DescribeShardRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let answer = self.description(now);
        let correlation = frame.header.correlation;
        self.reply(key, Op::DescribeShard, FLAG_RESPONSE, correlation, |b| {
            answer.pack(b)
        });
        Ok(Handled::Done)
    }

    fn description(&self, now: Now) -> wire::DescribeShardResponseT {
        let (settings, host) = (&self.settings, self.settings.host.clone());
        let uptime_ns = self
            .started_ns
            .map_or(0, |at| now.mono_ns.saturating_sub(at));
        let log = self.wal.stats();
        let (wal_free_slots, _) = self.wal.free_slots();
        let memory_bytes = |chunks: usize| (chunks * CHUNK_BYTES) as u64;
        wire::DescribeShardResponseT {
            broker_version: Some(settings.broker_version.clone()),
            commit: Some(host.commit),
            process_id: host.process_id,
            shard: settings.shard,
            shards: settings.shards,
            cpu: host.cpu,
            idle: Some(host.idle),
            incarnation: settings.incarnation,
            uptime_ms: uptime_ns / 1_000_000,
            kernel: Some(host.kernel),
            file_system: Some(host.file_system),
            device: Some(host.device),
            write_cache: Some(host.write_cache),
            fua: Some(host.fua),
            durable_write_ns: host.durable_write_ns,
            wal_slots: self.wal.slots() as u32,
            wal_free_slots: wal_free_slots as u32,
            wal_slot_bytes: settings.wal_slot_bytes,
            sync_interval_ms: settings.sync_interval_ms,
            wal_writes: log.frames,
            wal_bytes: log.bytes,
            wal_records: log.entries,
            connections: self.connections,
            memory_bytes: memory_bytes(self.pool.chunks()),
            memory_free_bytes: memory_bytes(self.pool.free_chunks()),
        }
    }
}
