//! The custom resources as the real apiserver takes and refuses them.
