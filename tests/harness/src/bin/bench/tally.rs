//! Compares the observed transitions with the load: the bare watch must show each one once, and each must have one
//! signed POST.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::mpsc::{Receiver, TryRecvError},
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;

use crate::{receiver::Post, transition::Transition, watch::Sighting};

/// Time limit for missing POSTs.
const LATEST: Duration = Duration::from_secs(30);
/// No POST may follow the last expected one within this time.
const REST: Duration = Duration::from_millis(500);

/// The observations of one subject's rounds.
pub struct Tally<'a> {
    sightings: &'a Receiver<Sighting>,
    posts: &'a Receiver<Post>,
    secret: &'a str,
    jobs: u32,
    expected: HashSet<Transition>,
    seen: HashMap<Transition, Instant>,
    posted: HashMap<Transition, Instant>,
    repeated: Vec<Transition>,
    /// When each POST came, repeats included.
    arrivals: Vec<Instant>,
}

/// The result for transitions that may be lost or repeated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reckoning {
    pub transitions: usize,
    /// Never acknowledged.
    pub lost: usize,
    /// Acknowledged again.
    pub repeats: usize,
}

impl std::ops::AddAssign for Reckoning {
    fn add_assign(&mut self, other: Self) {
        self.transitions += other.transitions;
        self.lost += other.lost;
        self.repeats += other.repeats;
    }
}

impl<'a> Tally<'a> {
    pub fn new(sightings: &'a Receiver<Sighting>, posts: &'a Receiver<Post>, secret: &'a str, jobs: u32) -> Self {
        let (expected, seen, posted) = (HashSet::new(), HashMap::new(), HashMap::new());
        let (repeated, arrivals) = (Vec::new(), Vec::new());
        Self { sightings, posts, secret, jobs, expected, seen, posted, repeated, arrivals }
    }

    /// Waits until all of these have been seen and posted, and half a second more for unexpected POSTs. Returns the
    /// latency of each in milliseconds: from its arrival on the bare watch to the arrival of its POST.
    pub async fn wait_for(&mut self, transitions: &[Transition]) -> Result<Vec<f64>, String> {
        self.expected.extend(transitions);
        let begun = Instant::now();
        loop {
            self.drain()?;
            let missing = |there: &HashMap<_, _>| transitions.iter().filter(|one| !there.contains_key(*one)).count();
            let (unseen, unposted) = (missing(&self.seen), missing(&self.posted));
            if unseen == 0 && unposted == 0 {
                break;
            }
            if begun.elapsed() > LATEST {
                let all = transitions.len();
                return Err(format!("of {all} transitions {unseen} were not on the bare watch, {unposted} not posted"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.rest().await?;
        if let Some(transition) = self.repeated.first() {
            return Err(format!("{transition:?} was posted twice"));
        }
        let latency = |one| {
            let (posted, seen): (Instant, Instant) = (self.posted[one], self.seen[one]);
            (posted.saturating_duration_since(seen).as_secs_f64()
                - seen.saturating_duration_since(posted).as_secs_f64())
                * 1e3
        };
        Ok(transitions.iter().map(latency).collect())
    }

    /// Waits until all of these have been acknowledged, or until nothing has come for `patience`.
    pub async fn reckon(&mut self, transitions: &[Transition], patience: Duration) -> Result<Reckoning, String> {
        self.expected.extend(transitions);
        let (mut arrivals, mut since) = (0, Instant::now());
        loop {
            self.drain()?;
            let lost = transitions.iter().filter(|one| !self.posted.contains_key(*one)).count();
            if self.arrivals.len() != arrivals {
                (arrivals, since) = (self.arrivals.len(), Instant::now());
            }
            if lost == 0 || since.elapsed() > patience {
                self.rest().await?;
                let repeats = std::mem::take(&mut self.repeated).len();
                return Ok(Reckoning { transitions: transitions.len(), lost, repeats });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// When the first POST came at or after this moment.
    pub fn first_since(&self, moment: Instant) -> Option<Instant> {
        self.arrivals.iter().copied().filter(|at| *at >= moment).min()
    }

    /// Waits for unexpected POSTs.
    async fn rest(&mut self) -> Result<(), String> {
        tokio::time::sleep(REST).await;
        self.drain()?;
        let strangers = self.posted.keys().filter(|one| !self.expected.contains(one)).count();
        if strangers > 0 { Err(format!("{strangers} POSTs tell of what did not happen")) } else { Ok(()) }
    }

    /// Records everything that has arrived.
    pub fn drain(&mut self) -> Result<(), String> {
        for sighting in arrived(self.sightings)? {
            let (transition, at) = sighting?;
            if self.seen.insert(transition, at).is_some() {
                return Err(format!("{transition:?} was on the bare watch twice"));
            }
        }
        for post in arrived(self.posts)? {
            let transition = read(&post, self.secret, self.jobs)?;
            self.arrivals.push(post.at);
            if !post.acknowledged {
                continue;
            }
            match self.posted.entry(transition) {
                Entry::Occupied(_) => self.repeated.push(transition),
                Entry::Vacant(place) => drop(place.insert(post.at)),
            }
        }
        Ok(())
    }
}

/// Reads the transition from a POST, and checks its signature with this secret.
pub fn read(post: &Post, secret: &str, jobs: u32) -> Result<Transition, String> {
    let refuse = |problem: &str| format!("{problem}: {}", String::from_utf8_lossy(&post.body));
    let Ok(mut mac) = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()) else { unreachable!() };
    mac.update(&post.body);
    mac.verify_slice(&hexadecimal(&post.signature)).map_err(|_| refuse("a POST's signature is wrong"))?;
    let body: Value = serde_json::from_slice(&post.body).map_err(|error| refuse(&error.to_string()))?;
    let word = |name: &str| body["data"][name].as_str().unwrap_or_default();
    Transition::read(word("name"), word("status"), word("startedAt"), jobs)
        .ok_or_else(|| refuse("a POST tells of nothing that happened"))
}

impl Drop for Tally<'_> {
    /// Leftovers must not reach the next tally.
    fn drop(&mut self) {
        let _ = (self.sightings.try_iter().count(), self.posts.try_iter().count());
    }
}

fn arrived<T>(channel: &Receiver<T>) -> Result<Vec<T>, String> {
    let mut all = Vec::new();
    loop {
        match channel.try_recv() {
            Ok(one) => all.push(one),
            Err(TryRecvError::Empty) => return Ok(all),
            // The last message contains the reason.
            Err(TryRecvError::Disconnected) if !all.is_empty() => return Ok(all),
            Err(TryRecvError::Disconnected) => return Err("an observer of the benchmark has ended; see above".into()),
        }
    }
}

/// Decodes hexadecimal digits; empty if one is invalid.
fn hexadecimal(digits: &str) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pairs = digits.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| Some((digit(&pair[0])? * 16 + digit(pair.get(1)?)?) as u8));
    bytes.collect::<Option<_>>().unwrap_or_default()
}

/// The value that this share of the values does not exceed (nearest rank). The values must be sorted.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.99)), (100.0, 198.0));
        assert_eq!((percentile(&[7.0], 0.99), percentile(&[7.0], 0.0)), (7.0, 7.0));
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn what_an_observer_said_last_is_told_before_its_end() {
        let (said, heard) = std::sync::mpsc::channel();
        said.send("why").unwrap();
        drop(said);
        assert_eq!(arrived(&heard), Ok(vec!["why"]));
        assert!(arrived(&heard).is_err());
    }

    #[test]
    fn hexadecimal_digits_are_read() {
        assert_eq!(hexadecimal("00fF1a"), [0, 255, 26]);
        assert!(hexadecimal("0g").is_empty() && hexadecimal("123").is_empty());
    }
}
