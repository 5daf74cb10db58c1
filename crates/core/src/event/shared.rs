//! Serde functions for a value that several owners share. It is stored once per owner.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

// Serde requires this signature.
#[allow(clippy::ref_option)]
pub fn serialize<T: Serialize, S: Serializer>(shared: &Option<Arc<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    shared.as_deref().serialize(serializer)
}

pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Arc<T>>, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.map(Arc::new))
}
