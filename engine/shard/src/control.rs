//! Changes of topics: ordered by the metadata group on shard 0, one at a time. A change is durable
//! first, then in force on every shard, then answered.

use ringtide_io::Now;
use ringtide_log::wal::EntryMeta;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::{FLAG_RESPONSE, Op};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::wal::EntryKind;
use ringtide_schema::wire;
use ringtide_session::{Frame, envelope};

use crate::fault::Fault;
use crate::mail::Mail;
use crate::query::pack;
use crate::requests::{Handled, bad_envelope};
use crate::session::SessionKey;
use crate::topics::Change;
use crate::{Fx, Pending, Shard};

/// The change under way.
#[derive(Debug)]
struct Current {
    number: u64,
    seq: u64,
    /// The entry's number in the metadata group.
    index: u64,
    change: Change,
    key: SessionKey,
    correlation: u64,
    op: Op,
    /// Shards where it is not in force yet; set when it is durable.
    missing: Option<u16>,
}

/// Shard 0's side of the metadata.
#[derive(Debug, Default)]
pub(crate) struct Control {
    current: Option<Current>,
    next_number: u64,
    /// The last entry of the metadata group that is in force here.
    pub(crate) applied_index: u64,
    topics_made: u64,
}

impl Control {
    /// Whether nothing waits for the log. A change that is durable is in force at the next start,
    /// whether or not every shard of this one hears of it.
    pub(crate) fn is_idle(&self) -> bool {
        self.current.as_ref().is_none_or(|c| c.missing.is_some())
    }
}

impl Shard {
    pub(crate) fn change_topic(
        &mut self,
        key: SessionKey,
        op: Op,
        frame: &Frame<'_>,
        now: Now,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        if self.settings.shard != 0 {
            return self.forward(key, 0, op, frame, fx);
        }
        if self.is_stopping {
            return Err(Fault::shutting_down());
        }
        if self.control.current.is_some() {
            return Ok(Handled::Blocked);
        }
        let bytes = frame.envelope;
        let proposal = match op {
            Op::CreateTopic => {
                let request =
                    envelope::<wire::CreateTopicRequest<'_>>(bytes).map_err(bad_envelope)?;
                let random = splitmix(self.settings.seed ^ splitmix(self.control.topics_made));
                self.topics.create(&request.unpack(), random)?
            }
            Op::AlterTopic => {
                let request =
                    envelope::<wire::AlterTopicRequest<'_>>(bytes).map_err(bad_envelope)?;
                self.topics.alter(&request.unpack())?
            }
            _ => {
                let request =
                    envelope::<wire::DeleteTopicRequest<'_>>(bytes).map_err(bad_envelope)?;
                self.topics.delete(request.name().unwrap_or_default())?
            }
        };
        let payload = pack(|b| proposal.entry.pack(b));
        let group_id = self.placement.metadata_group();
        let group = self.groups.entry(group_id).or_default();
        let meta = EntryMeta {
            kind: EntryKind::Meta,
            class: proposal.class,
            group: group_id,
            group_index: group.last_index + 1,
            partition: PartitionId::default(),
            base_offset: 0,
            append_time_ms: now.wall_ms,
        };
        let fill = |target: &mut [u8]| target.copy_from_slice(&payload);
        let ops = &mut fx.disk;
        let appended = match self.wal.append(meta, payload.len(), fill, now.mono_ns, ops) {
            Ok(appended) => appended,
            Err(busy) => return self.no_room(busy),
        };
        group.last_index += 1;
        let index = group.last_index;
        self.wal.want(appended.seq);
        self.control.topics_made += 1;
        self.control.next_number += 1;
        self.control.current = Some(Current {
            number: self.control.next_number,
            seq: appended.seq,
            index,
            change: proposal.change,
            key,
            correlation: frame.header.correlation,
            op,
            missing: None,
        });
        Ok(Handled::Later)
    }

    /// The log moved: the change may be durable now.
    pub(crate) fn control_committed(&mut self, fx: &mut Fx) {
        let committed = self.wal.committed();
        let others = self.settings.shards - 1;
        let Some(current) = &mut self.control.current else {
            return;
        };
        if current.missing.is_some() || current.seq > committed {
            return;
        }
        current.missing = Some(others);
        self.control.applied_index = current.index;
        let (number, change) = (current.number, current.change.clone());
        for shard in 1..self.settings.shards {
            fx.mail.push((
                shard,
                Mail::Change {
                    number,
                    change: change.clone(),
                },
            ));
        }
        self.apply(&change, fx);
        self.answer_change();
    }

    /// Another shard applied the change.
    pub(crate) fn change_done(&mut self, number: u64) {
        if let Some(current) = &mut self.control.current
            && current.number == number
            && let Some(missing) = &mut current.missing
        {
            *missing -= 1;
            self.answer_change();
        }
    }

    fn answer_change(&mut self) {
        let Some(Current {
            key,
            correlation,
            op,
            change,
            ..
        }) = self.control.current.take_if(|c| c.missing == Some(0))
        else {
            return;
        };
        let topic = match &change {
            Change::Put(topic) => Some(Box::new(self.placement.describe(topic))),
            Change::Deleted(_) => None,
        };
        match op {
            Op::CreateTopic => self.reply(key, op, FLAG_RESPONSE, correlation, |b| {
                wire::CreateTopicResponseT { topic }.pack(b)
            }),
            Op::AlterTopic => self.reply(key, op, FLAG_RESPONSE, correlation, |b| {
                wire::AlterTopicResponseT { topic }.pack(b)
            }),
            _ => self.reply(key, op, FLAG_RESPONSE, correlation, |b| {
                wire::DeleteTopicResponse::create(b, &wire::DeleteTopicResponseArgs {})
            }),
        }
        self.finish(key, op);
    }

    /// Brings a change into force on this shard.
    pub(crate) fn apply(&mut self, change: &Change, fx: &mut Fx) {
        match change {
            Change::Put(topic) => {
                for partition in 0..topic.partitions {
                    let id = PartitionId {
                        topic: topic.id,
                        partition,
                    };
                    let (group, owner) = self.placement.of(id);
                    if owner != self.settings.shard {
                        continue;
                    }
                    if let Some(&i) = self.index.get(&id) {
                        if let Some(held) = self.held(i) {
                            held.log.set_config(topic.config);
                        }
                        self.wake(i);
                        continue;
                    }
                    let dir = self
                        .settings
                        .data_dir
                        .join("partitions")
                        .join(id.dir_name());
                    let incarnation = self.settings.incarnation;
                    self.hold(ringtide_log::partition::Partition::create(
                        id,
                        group,
                        topic.config,
                        dir,
                        incarnation,
                    ));
                }
            }
            Change::Deleted(id) => {
                let partitions = self.topics.with_id(*id).map_or(0, |t| t.partitions);
                for partition in 0..partitions {
                    self.drop_partition(
                        PartitionId {
                            topic: *id,
                            partition,
                        },
                        fx,
                    );
                }
            }
        }
        self.topics.apply(change);
    }

    fn drop_partition(&mut self, id: PartitionId, fx: &mut Fx) {
        let Some(i) = self.index.remove(&id) else {
            return;
        };
        let closed = self
            .with_log(i, fx, |log, ops| log.delete(ops))
            .unwrap_or_default();
        for &file in &closed {
            fx.disk
                .push((ringtide_io::OpId(0), ringtide_io::DiskOp::Close { file }));
        }
        let ops = &mut self.ops;
        self.upkeep.pieces.retain(|(op, _)| {
            let is_here = matches!(ops.get(op), Some(Pending::Partition(of, _)) if *of == i);
            if is_here {
                ops.remove(op);
            }
            !is_here
        });
        // Those that are being opened are closed once more when they are.
        if self.has_ops(i) {
            self.orphans.insert(i, closed);
        }
        let Some(held) = self.partitions.get_mut(i).and_then(Option::take) else {
            return;
        };
        if let Some(group) = self.groups.get_mut(&held.log.group()) {
            group.partitions.retain(|&p| p != i);
        }
        if held.is_writing {
            self.upkeep.writers -= 1;
        }
        let fault = Fault::new(ErrorCode::UnknownTopic, "the topic was deleted");
        self.fail_watchers(i, held.watchers.sessions(), 0..u64::MAX, &fault);
        self.step_searches(i, fx);
        self.upkeep.checkpoint_moved = true;
    }
}

/// A well mixed number from any other (the finalizer of the SplitMix64 generator).
fn splitmix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
