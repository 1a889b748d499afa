//! The way to one server: whether it is wanted, being made, up, or to be tried again later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::core::backoff::Backoff;
use crate::core::call::Request;
use crate::core::connection::{Connection, earlier};
use crate::core::parcel::{Parcel, Part};
use crate::core::{Core, Tag, server_name};
use crate::error::Error;

/// The state of a link.
pub(crate) enum State {
    /// No connection.
    Down,
    /// The face is to make a connection.
    Wanted,
    /// The face is making one.
    Connecting { deadline: Instant },
    /// Bytes flow; whether hello was answered, the connection knows.
    Up(Box<Connection<Tag>>),
}

impl State {
    /// The connection, if requests may be sent on it.
    pub(crate) fn ready(&mut self) -> Option<&mut Connection<Tag>> {
        match self {
            Self::Up(connection) if connection.hello().is_some() => Some(connection),
            _ => None,
        }
    }
}

/// The way to one server.
pub(crate) struct Link {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
    /// Host and port, for people.
    pub(crate) name: Arc<str>,
    pub(crate) state: State,
    /// Somebody needs it.
    pub(crate) demand: bool,
    /// Not to be tried before.
    pub(crate) retry_at: Option<Instant>,
    pub(crate) backoff: Backoff,
    /// Silence until then means that the broker is asked whether it is there.
    pub(crate) ping_at: Option<Instant>,
    /// Why it is down.
    pub(crate) error: Option<Error>,
    /// What will not be answered, in the order of the output. The answer to a ping behind it says
    /// that the broker has handled it.
    pub(crate) silent: VecDeque<Part>,
    /// How many of them the ping under way stands behind.
    vouched: usize,
    /// Batches that are about to be put into the output.
    pub(crate) parcel: Parcel,
    /// The face is to close the connection.
    close: bool,
}

impl Link {
    pub(crate) fn new(host: Arc<str>, port: u16, backoff: Backoff) -> Self {
        Self {
            name: server_name(&host, port).into(),
            host,
            port,
            state: State::Down,
            demand: false,
            retry_at: None,
            backoff,
            ping_at: None,
            error: None,
            silent: VecDeque::new(),
            vouched: 0,
            parcel: Parcel::default(),
            close: false,
        }
    }

    /// The connection, if requests may be sent on it.
    pub(crate) fn ready(&mut self) -> Option<&mut Connection<Tag>> {
        self.state.ready()
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(&self.state, State::Up(connection) if connection.hello().is_some())
    }
}

/// What a face does about links. A link's number stays the same for the life of the client.
impl Core {
    /// The next link that is to be connected now.
    pub(crate) fn next_connect(&mut self, now: Instant) -> Option<(usize, Arc<str>, u16)> {
        let index = self
            .links
            .iter()
            .position(|l| matches!(l.state, State::Wanted))?;
        let link = &mut self.links[index];
        let deadline = now + self.options.connect_timeout;
        link.state = State::Connecting { deadline };
        link.close = false;
        self.wake = earlier(self.wake, Some(deadline));
        Some((index, link.host.clone(), link.port))
    }

    /// The connection was made; what is left of its time, hello has.
    pub(crate) fn connected(&mut self, link: usize, now: Instant) {
        let State::Connecting { deadline } = self.links[link].state else {
            return;
        };
        let options = &self.options;
        let silence = options.request_timeout;
        let connection = Connection::new(&options.client_name, now, deadline, silence);
        self.links[link].state = State::Up(Box::new(connection));
    }

    /// No connection could be made.
    pub(crate) fn connect_failed(&mut self, link: usize, error: &std::io::Error, now: Instant) {
        let server = self.links[link].name.clone();
        let why = error.to_string().into();
        self.down(
            link,
            Error::Connect {
                server,
                kind: error.kind(),
                why,
            },
            now,
        );
    }

    /// The connection ended.
    pub(crate) fn lost(&mut self, link: usize, why: &str, now: Instant) {
        let server = self.links[link].name.clone();
        self.down(
            link,
            Error::Disconnected {
                server,
                why: why.into(),
            },
            now,
        );
    }

    pub(crate) fn is_up(&self, link: usize) -> bool {
        matches!(self.links[link].state, State::Up(_))
    }

    /// Whether the face is to close its end of the link, asked once.
    pub(crate) fn take_close(&mut self, link: usize) -> bool {
        std::mem::take(&mut self.links[link].close)
    }

    pub(crate) fn links(&self) -> usize {
        self.links.len()
    }

    /// Bytes to be sent on a link.
    pub(crate) fn output(&self, link: usize) -> &[u8] {
        match &self.links[link].state {
            State::Up(connection) => connection.output(),
            _ => &[],
        }
    }

    /// The first `bytes` of the output were sent.
    pub(crate) fn sent(&mut self, link: usize, bytes: usize) {
        if let State::Up(connection) = &mut self.links[link].state {
            connection.sent(bytes);
            if connection.output().is_empty() && self.throttled {
                self.throttled = false;
                self.rescan = true;
            }
        }
    }

    /// Sends a ping behind what is not answered, unless one is under way.
    /// It comes when all that was handled, which may take long.
    pub(crate) fn vouch(&mut self, link: usize) {
        let link = &mut self.links[link];
        if link.vouched == 0
            && !link.silent.is_empty()
            && let Some(connection) = link.state.ready()
            && connection.has_room()
        {
            Request::Ping.send(connection, None, None, Tag::Vouch);
            link.vouched = link.silent.len();
        }
    }

    /// The ping behind what is not answered was.
    pub(crate) fn vouched(&mut self, link: usize) {
        for _ in 0..std::mem::take(&mut self.links[link].vouched) {
            let Some(batch) = self.links[link].silent.pop_front() else {
                break;
            };
            if let Some(producer) = self.producers.get_mut(&batch.producer) {
                producer.finish_unacknowledged(batch.partition, batch.batch);
                self.mark_lane(batch.producer, batch.partition);
            }
        }
    }

    /// When to tick again, at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let overdue = self.links.iter().filter_map(|l| match &l.state {
            State::Up(connection) => connection.next_check(),
            _ => None,
        });
        earlier(self.wake, overdue.min())
    }

    /// Whether a tick has something to do besides timers.
    pub(crate) fn is_restless(&self) -> bool {
        self.rescan
            || self
                .links
                .iter()
                .any(|l| l.close || matches!(l.state, State::Wanted))
    }

    /// The number of the link to this address.
    pub(crate) fn link_to(&mut self, host: &Arc<str>, port: u16) -> usize {
        let found = self
            .links
            .iter()
            .position(|l| l.port == port && l.host == *host);
        found.unwrap_or_else(|| {
            let backoff = self.new_backoff();
            self.links.push(Link::new(host.clone(), port, backoff));
            self.links.len() - 1
        })
    }

    /// Forgets why links are down that nobody needs while another is up.
    pub(crate) fn forget_troubles(&mut self) {
        if self.links.iter().any(Link::is_ready) {
            for link in self.links.iter_mut().filter(|l| !l.demand) {
                link.error = None;
            }
        }
    }

    /// Some link that requests may be sent on; if there is none, one will be made.
    ///
    /// All are tried in turn, those of the shards too: a server that was named may be gone.
    pub(crate) fn any_link(&mut self) -> Option<usize> {
        if let Some(ready) = self.links.iter().position(Link::is_ready) {
            return Some(ready);
        }
        let coming = |l: &Link| l.demand && !matches!(l.state, State::Down);
        if !self.links.iter().any(coming) {
            self.links[self.next_server].demand = true;
            self.wake = earlier(self.wake, self.links[self.next_server].retry_at);
        }
        None
    }

    pub(crate) fn down(&mut self, link: usize, error: Error, now: Instant) {
        // A loss may be told twice: by a read and by a write.
        if matches!(self.links[link].state, State::Down | State::Wanted) {
            return;
        }
        let wait = self.links[link].backoff.next(&mut self.random);
        let state = &mut self.links[link];
        state.close = true;
        state.demand = false;
        state.retry_at = Some(now + wait);
        state.error = Some(error.clone());
        state.silent.clear();
        state.vouched = 0;
        state.parcel.clear();
        let was = std::mem::replace(&mut state.state, State::Down);
        if link == self.next_server {
            self.next_server = (self.next_server + 1) % self.links.len();
        }
        self.rescan = true;
        self.wake = earlier(self.wake, self.links[link].retry_at);
        if let State::Up(connection) = was {
            self.unanswered(link, *connection, &error, now);
        }
        // The shard may have moved.
        if self.contacted {
            self.cluster.refresh_wanted = true;
        }
    }

    /// A peer that is gone without a word is noticed by its silence only, and a subscription alone
    /// waits for no answer: a ping does.
    fn ping_if_silent(&mut self, link: usize, now: Instant) {
        let deadline = Some(now + self.options.request_timeout);
        let Link { state, ping_at, .. } = &mut self.links[link];
        let Some(connection) = state.ready() else {
            return;
        };
        if ping_at.is_some_and(|at| at <= now) {
            *ping_at = deadline;
            // Without room there are requests enough whose answers are due.
            if connection.has_room() {
                Request::Ping.send(connection, None, deadline, Tag::Ping);
            }
        }
        self.wake = earlier(self.wake, *ping_at);
    }

    /// Every shard's address is a link, so that any of them can be asked when others are gone.
    pub(crate) fn link_shards(&mut self) {
        let shards: Vec<_> = self.cluster.shards.values().cloned().collect();
        for (host, port) in shards {
            self.link_to(&host, port);
        }
    }

    /// Connects what is needed and may be tried, and gives up what takes too long.
    pub(crate) fn tick_links(&mut self, now: Instant) {
        for index in 0..self.links.len() {
            let link = &mut self.links[index];
            let overdue = match &mut link.state {
                State::Down => {
                    if link.demand && link.retry_at.is_none_or(|at| at <= now) {
                        link.state = State::Wanted;
                    } else if link.demand {
                        self.wake = earlier(self.wake, link.retry_at);
                    }
                    false
                }
                State::Wanted => false,
                State::Connecting { deadline } => {
                    self.wake = earlier(self.wake, Some(*deadline));
                    *deadline <= now
                }
                State::Up(connection) => connection.is_overdue(now),
            };
            if !overdue {
                self.vouch(index);
                self.ping_if_silent(index, now);
            }
            if overdue && self.is_up(index) {
                self.lost(index, "the broker did not answer in time", now);
            } else if overdue {
                let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                self.connect_failed(index, &error, now);
            }
        }
    }
}
