//! A JSON tree that forgets nothing a configuration check needs: the order of keys, and keys that are given twice (which `serde_json::Value`
//! drops in silence). Touches nothing but the text it is given.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A JSON value, as far as a pool's configuration needs one.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// A string.
    Text(String),
    /// An object, its keys in the order of the text and each of them unique.
    Object(Vec<(String, Json)>),
    /// A list.
    List(Vec<Json>),
    /// A whole number that is not below zero.
    Number(u64),
    /// `true` or `false`.
    Boolean(bool),
    /// Anything else, as words for an error message ("null").
    Other(&'static str),
}

impl Json {
    /// What this is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Json::Text(_) => "a string",
            Json::Object(_) => "an object",
            Json::List(_) => "a list",
            Json::Number(_) => "a number",
            Json::Boolean(_) => "a boolean",
            Json::Other(kind) => kind,
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Json, E> {
        Ok(Json::Text(v.to_owned()))
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Json, E> {
        Ok(Json::Boolean(v))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other("a number"))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Json, E> {
        Ok(Json::Number(v))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other("a number"))
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(one) = seq.next_element::<Json>()? {
            list.push(one);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, Json>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("the key {key:?} is given twice")));
            }
            entries.push((key, value));
        }
        Ok(Json::Object(entries))
    }
}
