//! Members of stored JSON that this release does not know. They are kept unchanged, so that a rollback by one release
//! loses nothing that the newer release wrote.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// Unknown members. Takes eight bytes if there are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unknown(Option<Box<Map<String, Value>>>);

impl Unknown {
    pub const NONE: Self = Self(None);
}

impl Serialize for Unknown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().flat_map(|members| members.iter()))
    }
}

impl<'de> Deserialize<'de> for Unknown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = Map::deserialize(deserializer)?;
        Ok(Self((!members.is_empty()).then(|| Box::new(members))))
    }
}
