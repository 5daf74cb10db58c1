//! What must survive a crash. The engine owns the records in memory.

pub mod record;
