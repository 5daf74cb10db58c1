//! Signing keys: a key of a Secret, and during a rotation the previous one.

use std::sync::Arc;

use llmtune_api::secret::Encoding;
use secrecy::SecretSlice;

use super::{
    reader::Objects,
    reference::{Place, Problem, ReferenceError, Role},
};
use crate::delivery::sign::Keys;

/// The reference to a Webhook's signing keys, and their encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReference {
    pub place: Place,
    /// The key of the same Secret that contains the previous signing key during a rotation.
    pub previous: String,
    pub encoding: Encoding,
}

impl KeyReference {
    /// The decoded keys. If they equal `before`, this returns `before`, which remembers the key that the endpoint
    /// accepts.
    pub(super) fn find(&self, objects: &Objects, before: Option<&Arc<Keys>>) -> Result<Arc<Keys>, ReferenceError> {
        let Place { object, key } = &self.place;
        let current = self.decode(key, objects.bytes(&Role::SigningKey, &self.place)?)?;
        let previous = Place { object: object.clone(), key: self.previous.clone() };
        let previous = match objects.value(&Role::SigningKey, &previous)? {
            // Templates leave the previous key empty outside of a rotation.
            Some(bytes) if !bytes.is_empty() && previous != self.place => Some(self.decode(&self.previous, bytes)?),
            _ => None,
        };
        let keys = Keys::new(current, previous);
        let known = before.filter(|known| known.same_as(&keys));
        Ok(known.map_or_else(|| Arc::new(keys), Arc::clone))
    }

    fn decode(&self, key: &str, bytes: &[u8]) -> Result<SecretSlice<u8>, ReferenceError> {
        self.encoding.decode(bytes).map_err(|error| {
            let message = format!(
                "key {key:?} is not a Standard Webhooks secret: {error}; write whsec_ and the base64 of 24 to 64 random bytes, for example the output of: echo whsec_$(head -c 32 /dev/urandom | base64)"
            );
            ReferenceError::new(Role::SigningKey, &self.place.object, Problem::Invalid(message))
        })
    }
}
