//! Who waits for a partition.
//!
//! A peer may have thousands of subscriptions and waiting fetches at one partition, and there may be thousands of
//! peers. Each session is in here once, in the order of the keys: waking them costs by sessions, and one that goes
//! is not searched for among all places of all others.

use crate::session::SessionKey;

/// The sessions with a subscription or a fetch at a partition.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    /// By key, with how many of them it has.
    sessions: Vec<(SessionKey, u32)>,
}

impl Watchers {
    /// One more of this session.
    pub(crate) fn add(&mut self, key: SessionKey) {
        match self.find(key) {
            Ok(at) => self.sessions[at].1 += 1,
            Err(at) => self.sessions.insert(at, (key, 1)),
        }
    }

    /// One fewer of this session.
    pub(crate) fn remove(&mut self, key: SessionKey) {
        let Ok(at) = self.find(key) else { return };
        self.sessions[at].1 -= 1;
        if self.sessions[at].1 == 0 {
            self.sessions.remove(at);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn find(&self, key: SessionKey) -> Result<usize, usize> {
        self.sessions.binary_search_by_key(&key, |(key, _)| *key)
    }

    /// Each session, once.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = SessionKey> {
        self.sessions.iter().map(|(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use ringtide_io::ConnId;

    use super::*;

    #[test]
    fn a_session_is_woken_once_however_much_it_waits_for_and_until_the_last_of_it() {
        let keys = [3, 1, 2].map(|n| SessionKey::Local(ConnId(n)));
        let mut watchers = Watchers::default();
        for key in keys.into_iter().cycle().take(3 * 4096) {
            watchers.add(key);
        }
        assert_eq!(watchers.sessions().count(), 3);
        for left in (0..4096).rev() {
            watchers.remove(keys[0]);
            let there = watchers.sessions().any(|key| key == keys[0]);
            assert_eq!(there, left > 0);
        }
        // One that is not there any more.
        watchers.remove(keys[0]);
        assert_eq!(watchers.sessions().collect::<Vec<_>>(), [keys[1], keys[2]]);
    }
}
