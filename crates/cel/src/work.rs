//! What an evaluation may cost. Whatever touches a document's or a result's bytes is charged here before it is done.

/// Steps that one evaluation may take. `make bench micro` measures what that costs: less than a millisecond.
pub(super) const MOST_STEPS: u64 = 25_000;
/// Bytes that are copied, compared or searched in a step.
const BYTES_A_STEP: usize = 32;

/// Why a function has no value.
#[derive(Debug)]
pub(super) enum Fault {
    /// It takes arguments of other types.
    Types,
    /// It takes arguments of these types, but not these.
    Refused,
    /// The result is out of range.
    Range,
    DivisionByZero,
    /// NaN has no place in an order.
    NotANumber,
    /// The result is missing, as what a document lacks.
    Missing,
    /// It would take more work than is left.
    Work,
}

/// The work that is left.
pub(super) struct Work {
    left: u64,
}

impl Work {
    pub const fn new(steps: u64) -> Self {
        Self { left: steps }
    }

    pub fn steps(&mut self, steps: u64) -> Result<(), Fault> {
        let left = self.left.checked_sub(steps);
        // Nothing after it is for free, such as what `||` tries next.
        self.left = left.unwrap_or(0);
        left.map(|_| ()).ok_or(Fault::Work)
    }

    /// For looking at this many bytes, or copying them.
    pub fn bytes(&mut self, bytes: usize) -> Result<(), Fault> {
        self.steps((bytes / BYTES_A_STEP) as u64)
    }

    /// For a value of its own of this many bytes or elements.
    pub fn allocation(&mut self, bytes: usize) -> Result<(), Fault> {
        self.steps(2 + (bytes / BYTES_A_STEP) as u64)
    }

    pub const fn left(&self) -> u64 {
        self.left
    }
}
