//! A port as users write it: `5432` or, as in Istio's policies, `"5432"`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A port number from 1 to 65535, read from an integer or a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortValue(pub u16);

impl PortValue {
    /// Parses the decimal text of a port.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let port = if digits { text.parse::<u64>().ok() } else { None };
        port.and_then(Self::from_number).ok_or_else(|| format!("{text:?} is not a port: 1 to 65535"))
    }

    fn from_number(number: u64) -> Option<Self> {
        u16::try_from(number).ok().filter(|port| *port != 0).map(Self)
    }
}

impl Serialize for PortValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.0)
    }
}

impl<'de> Deserialize<'de> for PortValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortVisitor)
    }
}

struct PortVisitor;

impl Visitor<'_> for PortVisitor {
    type Value = PortValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port from 1 to 65535, as a number or a string")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<PortValue, E> {
        PortValue::from_number(value).ok_or_else(|| E::custom(format!("{value} is not a port: 1 to 65535")))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<PortValue, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(E::custom(format!("{value} is not a port: 1 to 65535"))),
        }
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<PortValue, E> {
        PortValue::parse(value).map_err(E::custom)
    }
}

impl JsonSchema for PortValue {
    fn schema_name() -> Cow<'static, str> {
        "PortValue".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Of these, the number's bounds concern integers, and the pattern strings.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 1,
            "maximum": 65535,
            "pattern": "^0*[1-9][0-9]{0,4}$",
        })
    }
}
