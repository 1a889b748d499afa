//! A shard that does what the test says and tells it what happens.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use ringtide_io::buffer::CHUNK_BYTES;
use ringtide_io::{
    Body, Chunk, ConnId, Disconnect, DiskDone, DiskError, DiskOp, Effects, Egress, Fatal, FileId,
    IndexBytes, Logic, NetOp, Now, OpId, OpenMode, Pool, Slice,
};
use ringtide_uring::{IdlePolicy, Running, ShardConfig, StopSignal};

/// What happened, without what belongs to the shard's thread.
#[derive(Debug)]
pub enum Event {
    Accepted(ConnId),
    Received(ConnId, Vec<u8>),
    Sent(ConnId),
    Disconnected(ConnId, Disconnect),
    Disk(OpId, Result<Done, DiskError>),
    Answer(u64),
}

#[derive(Debug)]
pub enum Done {
    Ended,
    Opened(u64),
    Read(Vec<u8>),
    IndexFile(Vec<u8>),
    IndexBuilt(Vec<ringtide_schema::index::IndexEntry>, u64),
}

/// What a command of the test works with.
pub struct Context<'a> {
    pub fx: &'a mut Effects<u64>,
    pub pool: &'a Pool,
}

impl Context<'_> {
    pub fn slice(&self, bytes: &[u8]) -> Slice {
        let mut chunk = self.pool.take().expect("a chunk");
        chunk.append(bytes);
        chunk.slice(0..bytes.len())
    }

    pub fn chunk(&self) -> Chunk {
        self.pool.take().expect("a chunk")
    }
}

type Command = Box<dyn FnOnce(&mut Context<'_>) + Send>;

struct Obedient {
    pool: Pool,
    commands: Receiver<Command>,
    events: Sender<Event>,
    look_again_ns: u64,
    conns: HashMap<ConnId, ()>,
    stopping: bool,
}

impl Obedient {
    fn tell(&self, event: Event) {
        // The test may have seen enough.
        let _ = self.events.send(event);
    }
}

impl Logic for Obedient {
    type Mail = u64;

    fn accepted(&mut self, conn: ConnId, _: SocketAddr, _: Now, _: &mut Effects<u64>) {
        assert!(
            self.conns.insert(conn, ()).is_none(),
            "a connection's number was used again"
        );
        self.tell(Event::Accepted(conn));
    }

    fn received(&mut self, conn: ConnId, bytes: &[u8], _: Now, _: &mut Effects<u64>) {
        assert!(self.conns.contains_key(&conn));
        self.tell(Event::Received(conn, bytes.to_vec()));
    }

    fn sent(&mut self, conn: ConnId, _: Egress, _: Now, _: &mut Effects<u64>) {
        self.tell(Event::Sent(conn));
    }

    fn disconnected(&mut self, conn: ConnId, why: Disconnect, _: Now, _: &mut Effects<u64>) {
        assert!(self.conns.remove(&conn).is_some(), "disconnected twice");
        self.tell(Event::Disconnected(conn, why));
    }

    fn disk(
        &mut self,
        op: OpId,
        result: Result<DiskDone, DiskError>,
        _: Now,
        _: &mut Effects<u64>,
    ) {
        let result = result.map(|done| match done {
            DiskDone::Done => Done::Ended,
            DiskDone::Opened { bytes } => Done::Opened(bytes),
            DiskDone::Read { chunk, bytes } => {
                Done::Read(chunk.slice(chunk.len() - bytes..chunk.len()).to_vec())
            }
            DiskDone::Index(IndexBytes::File(bytes)) => Done::IndexFile((*bytes).as_ref().to_vec()),
            DiskDone::Index(IndexBytes::Built {
                entries,
                covered_bytes,
            }) => Done::IndexBuilt(entries, covered_bytes),
        });
        self.tell(Event::Disk(op, result));
    }

    fn mail(&mut self, _: u16, mail: u64, _: Now, _: &mut Effects<u64>) {
        self.tell(Event::Answer(mail));
    }

    fn turn(&mut self, now: Now, fx: &mut Effects<u64>) {
        self.look_again_ns = now.mono_ns + 200_000;
        while let Ok(command) = self.commands.try_recv() {
            command(&mut Context {
                fx,
                pool: &self.pool,
            });
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        Some(self.look_again_ns)
    }

    fn stop(&mut self, _: Now, fx: &mut Effects<u64>) {
        self.stopping = true;
        fx.net
            .extend(self.conns.keys().map(|&conn| NetOp::Abort(conn)));
    }

    fn is_stopped(&self) -> bool {
        self.stopping && self.conns.is_empty()
    }
}

/// The test's end of it.
pub struct Shard {
    commands: Sender<Command>,
    events: Receiver<Event>,
    /// Events that were not waited for yet.
    early: Vec<Event>,
    pub address: SocketAddr,
    stop: StopSignal,
    running: Option<Running>,
    next_op: u64,
}

pub const PATIENCE: Duration = Duration::from_secs(20);

impl Shard {
    pub fn start(change: impl FnOnce(&mut ShardConfig)) -> Self {
        let listener = ringtide_uring::bind("127.0.0.1:0".parse().expect("address")).expect("bind");
        let address = listener.local_addr().expect("bound");
        let mut config = ShardConfig::new(0, 0, address);
        config.idle = IdlePolicy::Park;
        change(&mut config);
        let (commands, inbox) = mpsc::channel();
        let (outbox, events) = mpsc::channel();
        let make = move || Obedient {
            pool: Pool::new(8 * CHUNK_BYTES).expect("memory"),
            commands: inbox,
            events: outbox,
            look_again_ns: 0,
            conns: HashMap::new(),
            stopping: false,
        };
        let stop = StopSignal::new();
        let running = ringtide_uring::run(vec![(config, listener, Box::new(make))], stop.clone());
        let running = Some(running.expect("start"));
        Self {
            commands,
            events,
            early: Vec::new(),
            address,
            stop,
            running,
            next_op: 0,
        }
    }

    pub fn command(&self, command: impl FnOnce(&mut Context<'_>) + Send + 'static) {
        self.commands
            .send(Box::new(command))
            .expect("the shard runs");
    }

    pub fn net(&self, op: impl FnOnce() -> NetOp + Send + 'static) {
        self.command(move |cx| cx.fx.net.push(op()));
    }

    /// Waits for an event; others are kept for later.
    pub fn wait<R>(&mut self, mut wanted: impl FnMut(&Event) -> Option<R>) -> R {
        if let Some(at) = self.early.iter().position(|event| wanted(event).is_some()) {
            return wanted(&self.early.remove(at)).expect("as before");
        }
        loop {
            let event = self.events.recv_timeout(PATIENCE).unwrap_or_else(|error| {
                panic!(
                    "{error}; {} events besides: {:.300?}",
                    self.early.len(),
                    self.early
                )
            });
            match wanted(&event) {
                Some(result) => return result,
                None => self.early.push(event),
            }
        }
    }

    /// Everything that was told and not waited for, up to now.
    pub fn so_far(&mut self) -> Vec<Event> {
        self.early.extend(self.events.try_iter());
        std::mem::take(&mut self.early)
    }

    /// Waits until commands given before were carried out, and a turn passed.
    pub fn settle(&mut self) {
        for _ in 0..2 {
            self.command(|cx| cx.fx.mail.push((0, 0)));
            self.wait(|event| matches!(event, Event::Answer(0)).then_some(()));
        }
    }

    pub fn connect(&mut self) -> (TcpStream, ConnId) {
        let stream = TcpStream::connect(self.address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let conn = self.wait(|event| match event {
            Event::Accepted(conn) => Some(*conn),
            _ => None,
        });
        (stream, conn)
    }

    pub fn disconnected(&mut self, conn: ConnId) -> Disconnect {
        self.wait(|event| match event {
            Event::Disconnected(c, why) if *c == conn => Some(why.clone()),
            _ => None,
        })
    }

    pub fn sent(&mut self, conn: ConnId) {
        self.wait(|event| matches!(event, Event::Sent(c) if *c == conn).then_some(()));
    }

    pub fn disk(
        &mut self,
        op: impl FnOnce(&mut Context<'_>) -> DiskOp + Send + 'static,
    ) -> Result<Done, DiskError> {
        self.next_op += 1;
        let id = OpId(self.next_op);
        self.command(move |cx| {
            let op = op(cx);
            cx.fx.disk.push((id, op));
        });
        let mut result = None;
        self.wait(|event| match event {
            Event::Disk(op, r) if *op == id => {
                result = Some(match r {
                    Ok(Done::Ended) => Ok(Done::Ended),
                    Ok(Done::Opened(bytes)) => Ok(Done::Opened(*bytes)),
                    Ok(Done::Read(bytes)) => Ok(Done::Read(bytes.clone())),
                    Ok(Done::IndexFile(bytes)) => Ok(Done::IndexFile(bytes.clone())),
                    Ok(Done::IndexBuilt(e, b)) => Ok(Done::IndexBuilt(e.clone(), *b)),
                    Err(error) => Err(error.clone()),
                });
                Some(())
            }
            _ => None,
        });
        result.expect("it was seen")
    }

    pub fn open(&mut self, file: u64, path: &Path, mode: OpenMode) -> Result<u64, DiskError> {
        let path = path.to_owned();
        match self.disk(move |_| DiskOp::Open {
            file: FileId(file),
            path,
            mode,
        })? {
            Done::Opened(bytes) => Ok(bytes),
            other => panic!("open gave {other:?}"),
        }
    }

    pub fn send_file(&self, conn: ConnId, head: &[u8], file: u64, position: u64, bytes: usize) {
        let head = head.to_vec();
        let body = move || Body::File {
            file: FileId(file),
            position,
            bytes,
        };
        self.net(move || NetOp::Send(conn, Egress { head, body: body() }));
    }

    pub fn stop(self) -> Result<(), Fatal> {
        self.stop.stop();
        self.join()
    }

    pub fn join(mut self) -> Result<(), Fatal> {
        let running = self.running.take().expect("runs");
        running.join().pop().expect("one shard")
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(running) = self.running.take() {
            running.join();
        }
    }
}
