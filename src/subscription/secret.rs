//! Signing keys: one key of one Secret, and while it is rotated another.

use std::sync::Arc;

use llmtune_api::secret::Encoding;
use secrecy::SecretSlice;

use super::{
    reader::Objects,
    reference::{Place, Problem, ReferenceError, Role},
};
use crate::delivery::sign::Keys;

/// Where a Webhook's keys lie, and how they are written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReference {
    pub place: Place,
    /// The key of the same Secret that holds the one before, while it is rotated.
    pub previous: String,
    pub encoding: Encoding,
}

impl KeyReference {
    /// The keys: their bytes as stored, or as the encoding says. Where they are those of `before`, they are the same value, which knows which
    /// of them the endpoint has.
    pub(super) fn find(&self, objects: &Objects, before: Option<&Arc<Keys>>) -> Result<Arc<Keys>, ReferenceError> {
        let Place { object, key } = &self.place;
        let current = self.decode(key, objects.bytes(&Role::SigningKey, &self.place)?)?;
        let previous = Place { object: object.clone(), key: self.previous.clone() };
        let previous = match objects.value(&Role::SigningKey, &previous)? {
            // Templates leave it empty while nothing is rotated.
            Some(bytes) if !bytes.is_empty() && previous != self.place => Some(self.decode(&self.previous, bytes)?),
            _ => None,
        };
        let keys = Keys::new(current, previous);
        let known = before.filter(|known| known.same_as(&keys));
        Ok(known.map_or_else(|| Arc::new(keys), Arc::clone))
    }

    fn decode(&self, key: &str, bytes: &[u8]) -> Result<SecretSlice<u8>, ReferenceError> {
        self.encoding.decode(bytes).map_err(|error| {
            let say = format!(
                "key {key:?} is not a secret of Standard Webhooks: {error}; write whsec_ and the base64 of 24 to 64 random bytes there, as echo whsec_$(head -c 32 /dev/urandom | base64) prints"
            );
            ReferenceError::new(Role::SigningKey, &self.place.object, Problem::Invalid(say))
        })
    }
}
