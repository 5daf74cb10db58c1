//! Regular expressions in the syntax of RE2.
//!
//! A pattern is compiled to a table of states (a DFA) if the table is small. Each byte of a text then costs one lookup.
//! Other patterns are simulated; each byte costs as much as the pattern has states. Both are charged before they run.

use std::sync::Arc;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson::{self, pikevm::PikeVM};
use regex_automata::{Anchored, Input, MatchKind, util::syntax};

use super::Work;
use super::re2::translate;
use crate::value::Value;
use crate::work::Fault;

/// Maximum length of a pattern, in bytes.
pub(crate) const LONGEST: usize = 256;
/// Maximum size of a computed pattern after compilation, in bytes.
const COMPUTED_BYTES: usize = 1 << 14;
/// Number of states of a simulation that one step visits.
const STATES_A_STEP: u64 = 3;
/// Cost of compiling a computed pattern. Literal patterns are compiled with the expression.
const COMPILE_STEPS: u64 = 3_000;

/// A compiled pattern; cheap to clone.
#[derive(Clone)]
pub(crate) struct Pattern(Arc<Engine>);

enum Engine {
    Table(Box<Table>),
    Simulation { vm: Box<PikeVM>, states: u64 },
}

type Dfa = dense::DFA<Vec<u32>>;

struct Table {
    /// Finds the end of a match.
    forward: Dfa,
    /// Finds the start of a match. `matches` does not need it.
    reverse: Option<Dfa>,
}

/// Why a pattern is invalid.
#[derive(Debug)]
pub(crate) enum Unusable {
    TooLarge,
    Malformed(String),
}

/// The number of bytes that further patterns of an expression may have after compilation. A failed attempt to build a
/// table counts too, because it took work.
pub(crate) struct Room {
    programs: usize,
    tables: usize,
}

impl Room {
    pub const fn new() -> Self {
        Self { programs: 1 << 17, tables: 1 << 17 }
    }
}

impl Pattern {
    /// Compiles a pattern, and takes its size from `room`.
    pub fn compile(pattern: &str, role: Match, room: &mut Room) -> Result<Self, Unusable> {
        let translated = translate(pattern).map_err(|error| Unusable::Malformed(error.to_owned()))?;
        let parsed = syntax::parse_with(&translated, &syntax::Config::new().nest_limit(64));
        let hir = parsed.map_err(|error| {
            let error = error.to_string();
            Unusable::Malformed(error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
        })?;
        let captures = thompson::WhichCaptures::Implicit;
        let config = thompson::Config::new().nfa_size_limit(Some(room.programs)).which_captures(captures);
        let nfa = thompson::Compiler::new().configure(config.clone()).build_from_hir(&hir);
        let nfa = nfa.map_err(|_| Unusable::TooLarge)?;
        let forward = table(&nfa, &dense::Config::new(), room);
        let reverse = || {
            let config = config.reverse(true).which_captures(thompson::WhichCaptures::None);
            let reversed = thompson::Compiler::new().configure(config).build_from_hir(&hir).ok()?;
            table(&reversed, &dense::Config::new().match_kind(MatchKind::All).start_kind(StartKind::Anchored), room)
        };
        let table = forward.and_then(|forward| match role {
            Match::Matches => Some(Table { forward, reverse: None }),
            Match::Find | Match::FindAll => reverse().map(|reverse| Table { forward, reverse: Some(reverse) }),
        });
        if let Some(table) = table {
            return Ok(Self(Arc::new(Engine::Table(Box::new(table)))));
        }
        room.programs = room.programs.saturating_sub(nfa.memory_usage());
        let states = most_active(&nfa);
        let vm = PikeVM::new_from_nfa(nfa).map_err(|_| Unusable::TooLarge)?;
        Ok(Self(Arc::new(Engine::Simulation { vm: Box::new(vm), states })))
    }

    /// Charges for a search in a text.
    fn charge(&self, work: &mut Work, text: &str) -> Result<(), Fault> {
        work.steps(4)?;
        match &*self.0 {
            // One lookup for each byte, forward, and then backward from the end of a match.
            Engine::Table(_) => work.bytes(text.len().saturating_mul(4)),
            Engine::Simulation { states, .. } => {
                work.steps((text.len() as u64 + 4).saturating_mul(1 + states / STATES_A_STEP))
            }
        }
    }

    /// The first match at or after `from`. Charges for the bytes that it reads; [`Self::charge`] covers only one pass.
    fn first(&self, work: &mut Work, text: &str, from: usize) -> Result<Option<(usize, usize)>, Fault> {
        let input = Input::new(text).range(from..);
        match &*self.0 {
            Engine::Table(table) => {
                let (end, read) = walk(&table.forward, &input);
                work.bytes(4 * read)?;
                let start = |end| {
                    let input = Input::new(text).range(from..end).anchored(Anchored::Yes);
                    let found = table.reverse.as_ref()?.try_search_rev(&input);
                    found.ok().flatten().map(|found| found.offset())
                };
                Ok(end.and_then(|end| Some((start(end)?, end))))
            }
            Engine::Simulation { vm, .. } => {
                self.charge(work, &text[from..])?;
                Ok(vm.find_iter(&mut vm.create_cache(), input).next().map(|found| (found.start(), found.end())))
            }
        }
    }

    fn is_match(&self, text: &str) -> bool {
        match &*self.0 {
            Engine::Table(table) => {
                let found = table.forward.try_search_fwd(&Input::new(text).earliest(true));
                found.is_ok_and(|found| found.is_some())
            }
            Engine::Simulation { vm, .. } => vm.is_match(&mut vm.create_cache(), text),
        }
    }

    pub fn apply(&self, work: &mut Work, role: Match, text: &str, limit: i64) -> Result<Value, Fault> {
        self.charge(work, text)?;
        Ok(match role {
            Match::Matches => Value::Bool(self.is_match(text)),
            Match::Find => self.first(work, text, 0)?.map_or("", |(start, end)| &text[start..end]).into(),
            Match::FindAll => {
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                let mut found: Vec<Value> = Vec::new();
                let (mut from, mut last_end) = (0, None);
                while found.len() < limit && from <= text.len() {
                    let Some((start, end)) = self.first(work, text, from)? else { break };
                    work.allocation(64 + end - start)?;
                    if start < end || last_end != Some(end) {
                        found.push(text[start..end].into());
                    }
                    last_end = Some(end);
                    from = if start == end { end + text[end..].chars().next().map_or(1, char::len_utf8) } else { end };
                }
                found.into()
            }
        })
    }
}

/// Builds the table of a pattern. `None` if it is too large.
fn table(nfa: &thompson::NFA, config: &dense::Config, room: &mut Room) -> Option<Dfa> {
    if room.tables == 0 {
        return None;
    }
    let limits = config.clone().dfa_size_limit(Some(room.tables)).determinize_size_limit(Some(room.tables));
    let built = dense::Builder::new().configure(limits).build_from_nfa(nfa).ok();
    room.tables -= built.as_ref().map_or(room.tables / 4, |built| built.memory_usage().min(room.tables));
    built
}

/// Maximum number of states of a simulation that are active at the same time. A class of multi-byte characters has many
/// paths, but a text follows only one of them. So only the first state of each path counts.
fn most_active(nfa: &thompson::NFA) -> u64 {
    let within = |range: &thompson::Transition| range.start >= 0x80 && range.end <= 0xBF;
    let weight = |state: &thompson::State| match state {
        thompson::State::ByteRange { trans } => u64::from(!within(trans)),
        thompson::State::Sparse(ranges) if ranges.transitions.iter().all(within) => 0,
        // Its ranges are searched one after the other.
        thompson::State::Sparse(ranges) => 1 + ranges.transitions.len() as u64 / 16,
        _ => 1,
    };
    nfa.states().iter().map(weight).sum()
}

/// The end of the first match, and the number of bytes read to find it.
fn walk(dfa: &impl Automaton, input: &Input<'_>) -> (Option<usize>, usize) {
    let Ok(mut state) = dfa.start_state_forward(input) else { return (None, 0) };
    let mut end = None;
    // A match state is reached one byte after the end of the match.
    for at in input.start()..input.end() {
        state = dfa.next_state(state, input.haystack()[at]);
        if dfa.is_match_state(state) {
            end = Some(at);
        } else if dfa.is_dead_state(state) {
            return (end, at + 1 - input.start());
        }
    }
    if dfa.is_match_state(dfa.next_eoi_state(state)) {
        end = Some(input.end());
    }
    (end, input.end() - input.start())
}

/// The function that uses a pattern.
#[derive(Clone, Copy)]
pub(crate) enum Match {
    Matches,
    Find,
    FindAll,
}

fn computed(work: &mut Work, role: Match, args: &[Value]) -> Result<Value, Fault> {
    let (text, pattern, limit) = match (args, role) {
        ([Value::String(text), Value::String(pattern)], _) => (text, pattern, -1),
        ([Value::String(text), Value::String(pattern), Value::Int(limit)], Match::FindAll) => (text, pattern, *limit),
        _ => return Err(Fault::Types),
    };
    if pattern.len() > LONGEST {
        return Err(Fault::Refused);
    }
    work.steps(COMPILE_STEPS)?;
    let mut room = Room { programs: COMPUTED_BYTES, tables: 0 };
    let pattern = Pattern::compile(pattern, role, &mut room).map_err(|_| Fault::Refused)?;
    pattern.apply(work, role, text, limit)
}

pub(super) fn matches(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    computed(work, Match::Matches, args)
}

pub(super) fn find(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    computed(work, Match::Find, args)
}

pub(super) fn find_all(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    computed(work, Match::FindAll, args)
}
