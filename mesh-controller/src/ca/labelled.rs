//! What the authority writes bears the mesh's label. In: an object's name. Out: its metadata, in the mesh's namespace.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::compile::ROOT_NAMESPACE;

pub(super) fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(ROOT_NAMESPACE.into()),
        labels: Some(BTreeMap::from([("app.kubernetes.io/part-of".to_owned(), "ferromesh".to_owned())])),
        ..ObjectMeta::default()
    }
}
