//! Connections to the apiserver, shared by the operator and its kubectl plugin.

pub mod cluster;
pub mod error_chain;
