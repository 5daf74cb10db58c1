//! Untyped API objects. Fields that this release does not know are printed too.

use kube::{
    Api,
    api::{DynamicObject, ListParams},
};
use serde::de::DeserializeOwned;

/// Page size of a list. Objects may be large.
const PAGE: u32 = 250;

/// All objects that match the label selector; all objects without one.
pub async fn list(api: &Api<DynamicObject>, selector: Option<&str>) -> kube::Result<Vec<DynamicObject>> {
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector = selector.map(str::to_owned);
    let mut objects = Vec::new();
    loop {
        let page = api.list(&params).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(objects),
        }
    }
}

/// A part of an object, such as its status. `None` if it is absent or if this release cannot parse it.
pub fn part<T: DeserializeOwned>(object: &DynamicObject, name: &str) -> Option<T> {
    serde_json::from_value(object.data.get(name)?.clone()).ok()
}

pub fn name(object: &DynamicObject) -> &str {
    object.metadata.name.as_deref().unwrap_or_default()
}
