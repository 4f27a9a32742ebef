//! The network between replicas of one process: it loses, delays, repeats, reorders and cuts, by seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::super::crash::Dice;
use crate::group::Group;
use crate::network::{Answering, Peer, RaftAnswer, RaftMessage, Transport};

/// In percent, and milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub lost: u64,
    pub repeated: u64,
    pub delay_max_ms: u64,
}

#[derive(Debug)]
struct State {
    running: BTreeMap<u64, Group>,
    /// Nothing goes from the first to the second.
    cut: BTreeSet<(u64, u64)>,
    weather: Weather,
    dice: Dice,
    /// Addresses that are not the usual ones.
    moved: BTreeMap<u64, String>,
    /// Messages by name that arrived.
    counts: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
pub struct Net(Mutex<State>);

/// What happens to one message.
struct Fate {
    target: Option<Group>,
    delay: Duration,
    answer_delay: Duration,
    repeated: Option<Duration>,
    answer_lost: bool,
}

impl Net {
    pub fn new(seed: u64) -> Arc<Net> {
        Arc::new(Net(Mutex::new(State {
            running: BTreeMap::new(),
            cut: BTreeSet::new(),
            weather: Weather::default(),
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            moved: BTreeMap::new(),
            counts: BTreeMap::new(),
        })))
    }

    pub fn transport(self: &Arc<Net>, me: u64) -> Arc<dyn Transport> {
        Arc::new(Wire { me, net: Arc::clone(self) })
    }

    pub fn join(&self, id: u64, group: &Group) {
        self.0.lock().running.insert(id, group.clone());
    }

    pub fn leave(&self, id: u64) -> Option<()> {
        let gone = self.0.lock().running.remove(&id);
        gone.map(drop)
    }

    /// The connections of this replica end, as far as the others know.
    pub fn part(&self, id: u64) {
        self.running().iter().for_each(|(_, group)| group.parted(id));
    }

    pub fn clear(&self) {
        let gone = std::mem::take(&mut self.0.lock().running);
        drop(gone);
    }

    pub fn get(&self, id: u64) -> Option<Group> {
        self.0.lock().running.get(&id).cloned()
    }

    pub fn running(&self) -> Vec<(u64, Group)> {
        self.0.lock().running.iter().map(|(id, group)| (*id, group.clone())).collect()
    }

    pub fn roll(&self, sides: u64) -> u64 {
        self.0.lock().dice.roll(sides)
    }

    pub fn count(&self, name: &str) -> u64 {
        self.0.lock().counts.get(name).copied().unwrap_or(0)
    }

    /// From now on this replica is reached at this address only.
    pub fn expect(&self, id: u64, address: &str) {
        self.0.lock().moved.insert(id, address.to_owned());
    }

    pub fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// Nothing goes from `from` to `to` any more.
    pub fn cut(&self, from: u64, to: u64) {
        self.0.lock().cut.insert((from, to));
    }

    /// Nobody reaches this replica, and it reaches nobody.
    pub fn isolate(&self, id: u64) {
        for other in 1..16 {
            self.cut(id, other);
            self.cut(other, id);
        }
    }

    pub fn heal(&self) {
        self.0.lock().cut.clear();
    }

    fn fate(&self, from: u64, peer: &Peer, name: &'static str) -> Fate {
        let mut guard = self.0.lock();
        let state = &mut *guard;
        let to = peer.id;
        let usual = || super::address(to);
        let known = *state.moved.get(&to).unwrap_or(&usual()) == peer.address;
        let Weather { lost, repeated, delay_max_ms } = state.weather;
        let mut delay = || Duration::from_millis(state.dice.roll(delay_max_ms + 1));
        let (coming, going, again) = (delay(), delay(), delay());
        let cut = |a, b| state.cut.contains(&(a, b));
        let (there_cut, back_cut) = (cut(from, to), cut(to, from));
        let target = match !known || there_cut || state.dice.roll(100) < lost {
            true => None,
            false => state.running.get(&to).cloned(),
        };
        if target.is_some() {
            *state.counts.entry(name).or_default() += 1;
        }
        Fate {
            target,
            delay: coming,
            answer_delay: going,
            repeated: (state.dice.roll(100) < repeated).then_some(again),
            answer_lost: back_cut || state.dice.roll(100) < lost,
        }
    }
}

/// One replica's way to the others.
#[derive(Debug)]
struct Wire {
    me: u64,
    net: Arc<Net>,
}

impl Transport for Wire {
    fn call(&self, target: Peer, message: RaftMessage, _timeout: Duration) -> Answering {
        let me = self.me;
        let fate = self.net.fate(me, &target, message.name());
        Box::pin(async move {
            let bytes = message.encode().unwrap();
            tokio::time::sleep(fate.delay).await;
            let Some(group) = fate.target else {
                return Err(io::Error::other("lost on the way there"));
            };
            if let Some(later) = fate.repeated {
                let (group, bytes) = (group.clone(), bytes.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(later).await;
                    group.handle(me, RaftMessage::decode(&bytes).unwrap()).await;
                });
            }
            let answer = group.handle(me, RaftMessage::decode(&bytes).unwrap()).await;
            drop(group);
            tokio::time::sleep(fate.answer_delay).await;
            match fate.answer_lost {
                true => Err(io::Error::other("lost on the way back")),
                false => Ok(RaftAnswer::decode(&answer.encode().unwrap()).unwrap()),
            }
        })
    }
}
