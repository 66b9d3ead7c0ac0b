//! How a payload stands in `args`, which has to be an array: three forms, so that every payload comes back byte for
//! byte.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::json::{MAX_DEPTH, Value};

/// The payload of a job that names no arguments.
const NONE: &[u8] = b"[]";

/// A place for it is kept free: the arguments stand in an object, which may stand in another, each in an array.
const MAX_INNER_DEPTH: usize = MAX_DEPTH - 8;

/// How a payload stands in `args`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// The payload is the array of arguments, as every other producer has it.
    #[default]
    Args,
    /// The payload is another JSON value: the array's only element, with the white space around it.
    Value,
    /// The payload is anything else: the array's only element is its Base64.
    Base64,
}

impl Form {
    /// The word for it; none for what needs none.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Args => None,
            Self::Value => Some("value"),
            Self::Base64 => Some("base64"),
        }
    }

    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        [Self::Value, Self::Base64]
            .into_iter()
            .find(|form| value.in_quotes() == form.name().map(str::as_bytes))
    }

    /// The form that this payload needs. What is no UTF-8 is coded: others may read it who are stricter than we are.
    pub(super) fn of(payload: &[u8]) -> Self {
        if std::str::from_utf8(payload).is_err() {
            return Self::Base64;
        }
        match Value::of(payload) {
            Ok((value, depth)) if depth <= MAX_INNER_DEPTH => {
                // White space around the array would be lost.
                let plain = value.in_brackets().is_some() && value.0.len() == payload.len();
                if plain { Self::Args } else { Self::Value }
            }
            _ => Self::Base64,
        }
    }

    /// Writes the payload as the value of `args`.
    pub(super) fn write(self, out: &mut Vec<u8>, payload: &[u8]) {
        match self {
            Self::Args => out.extend_from_slice(payload),
            Self::Value => {
                out.push(b'[');
                out.extend_from_slice(payload);
                out.push(b']');
            }
            Self::Base64 => {
                out.extend_from_slice(b"[\"");
                out.extend_from_slice(encode(payload).as_bytes());
                out.extend_from_slice(b"\"]");
            }
        }
    }

    /// The payload that stands in `args`, which is a part of `raw`. Without `args`, or with `null`, there are none.
    pub(super) fn payload(self, raw: &Bytes, args: Option<Value<'_>>) -> Result<Bytes, String> {
        let args = args.filter(|args| !args.is_null());
        let inner = match self {
            Self::Args => return Ok(args.map_or(Bytes::from_static(NONE), |args| raw.slice_ref(args.0))),
            Self::Value | Self::Base64 => {
                args.and_then(Value::in_brackets).ok_or("its `args` are no array")?
            }
        };
        let Ok((only, _)) = Value::of(inner) else {
            return Err("its `args` are not the one that `tidegate.payload` says".to_owned());
        };
        match self {
            Self::Value => Ok(raw.slice_ref(inner)),
            _ => decode(only).map(Bytes::from).ok_or_else(|| "its argument is no Base64".to_owned()),
        }
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes that a string of JSON holds in Base64.
pub(super) fn decode(value: Value<'_>) -> Option<Vec<u8>> {
    let text: Cow<'_, str> = value.text()?;
    STANDARD.decode(text.as_bytes()).ok()
}
