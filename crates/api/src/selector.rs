//! Label selectors, as `metav1.LabelSelector` defines them, with bounds.

use std::collections::BTreeMap;

use kube::{
    KubeSchema,
    core::{Expression, Selector},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const LABEL_KEY_MESSAGE: &str = "a label key must be a name of at most 63 letters, digits, '-', '_' and '.', optionally with a DNS name and a slash before it, such as team or example.com/team";
const LABEL_VALUE: &str = "!format.labelValue().validate(self).hasValue()";
const LABEL_VALUE_MESSAGE: &str =
    "a label's value is empty or at most 63 letters, digits, '-', '_' and '.', with a letter or digit first and last";

/// A label selector as `metav1.LabelSelector` defines it, with bounds.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that the object must have, with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(key, !format.qualifiedName().validate(key).hasValue())").message(LABEL_KEY_MESSAGE))]
    pub match_labels: BTreeMap<String, LabelValue>,
    /// Further requirements. All of them must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub match_expressions: Vec<LabelRequirement>,
}

impl LabelSelector {
    /// The same selector in kube's type.
    #[must_use]
    pub fn selector(&self) -> Selector {
        let labels = self.match_labels.iter();
        let equal = labels.map(|(key, value)| Expression::Equal(key.clone(), value.0.clone()));
        let expressions = self.match_expressions.iter().map(|requirement| {
            let key = requirement.key.clone();
            let values = requirement.values.iter().cloned().collect();
            match requirement.operator {
                LabelOperator::In => Expression::In(key, values),
                LabelOperator::NotIn => Expression::NotIn(key, values),
                LabelOperator::Exists => Expression::Exists(key),
                LabelOperator::DoesNotExist => Expression::DoesNotExist(key),
            }
        });
        equal.chain(expressions).collect()
    }
}

/// A label's value.
#[derive(JsonSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": LABEL_VALUE, "message": LABEL_VALUE_MESSAGE}]))]
pub struct LabelValue(#[schemars(length(max = 63))] pub String);

/// One requirement of a label selector.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0")
    .message("In and NotIn need values; Exists and DoesNotExist must have none"))]
pub struct LabelRequirement {
    /// The label's key.
    #[schemars(length(max = 317))]
    #[x_kube(validation = Rule::new("!format.qualifiedName().validate(self).hasValue()").message(LABEL_KEY_MESSAGE))]
    pub key: String,
    /// How the label's value relates to `values`.
    pub operator: LabelOperator,
    /// The values that `In` and `NotIn` compare with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)), transform = super::each_item(LABEL_VALUE, LABEL_VALUE_MESSAGE))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub values: Vec<String>,
}

/// The operators of `metav1.LabelSelectorRequirement`.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}
