//! Limits the cost of an evaluation. Each operation on the bytes of a document or of a result is charged before it
//! runs.

/// Maximum number of steps of an evaluation: less than a millisecond, as `make bench micro` measures.
pub(super) const MOST_STEPS: u64 = 25_000;
/// Number of bytes that one step copies, compares or searches.
const BYTES_A_STEP: usize = 32;

/// Why an operation fails.
#[derive(Debug)]
pub(super) enum Fault {
    /// An argument has the wrong type.
    Types,
    /// The types are correct, but a value is invalid.
    Refused,
    /// The result is out of range.
    Range,
    DivisionByZero,
    /// NaN cannot be ordered.
    NotANumber,
    /// The result is missing, like a field that a document does not have.
    Missing,
    /// The operation needs more work than is left.
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
        // After a failure no work is left. Otherwise the next operands of `||` would still run.
        self.left = left.unwrap_or(0);
        left.map(|_| ()).ok_or(Fault::Work)
    }

    /// Charges for reading or copying this many bytes.
    pub fn bytes(&mut self, bytes: usize) -> Result<(), Fault> {
        self.steps((bytes / BYTES_A_STEP) as u64)
    }

    /// Charges for a new value of this many bytes.
    pub fn allocation(&mut self, bytes: usize) -> Result<(), Fault> {
        self.steps(2 + (bytes / BYTES_A_STEP) as u64)
    }

    pub const fn left(&self) -> u64 {
        self.left
    }
}
