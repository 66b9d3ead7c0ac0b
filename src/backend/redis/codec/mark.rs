//! What our own producer says beside what Sidekiq and Resque know: the field `tidegate`.
//!
//! It stands first in the object and only when there is something to say, so that a script in the server finds it by
//! the bytes `{"tidegate":{`. In it, each where there is one: `unique`, with `key`, `window` (`"queued"`, `"done"`, or
//! a number of milliseconds) and `clash` (`"first"` or `"replace"`); `timeout_ms`; and `payload`, how the payload
//! stands in the arguments. What else stands there is left to whoever wrote it.

use std::time::Duration;

use super::args::Form;
use super::json::{Object, Value};
use super::text;
use super::times::Number;
use crate::enqueue::{Clash, NewJob, Unique, UniqueKey, Window};

/// The name of the field.
pub(super) const FIELD: &str = "tidegate";

/// What the field says.
#[derive(Debug, Default)]
pub(super) struct Mark {
    pub(super) form: Form,
    pub(super) timeout: Option<Duration>,
    pub(super) unique: Option<Unique>,
}

impl Mark {
    /// What [`write`](Self::write) begins with, before the field's value.
    pub(super) const OPENING: &[u8] = b"{\"tidegate\":";

    /// Reads the field's value. The error says what is wrong with it.
    pub(super) fn read(value: Value<'_>) -> Result<Self, String> {
        let object = object(value, FIELD)?;
        let mut mark = Self::default();
        for (key, value) in object.fields() {
            match key.bytes() {
                b"payload" => {
                    mark.form = Form::read(value).ok_or("its `tidegate.payload` is none that is known")?
                }
                b"timeout_ms" => {
                    mark.timeout = Some(millis(value).ok_or("its `tidegate.timeout_ms` is no whole number")?);
                }
                b"unique" => mark.unique = Some(unique(value)?),
                _ => {}
            }
        }
        Ok(mark)
    }

    /// Begins the object `out` with the field if there is anything to say; whether there was.
    pub(super) fn write(out: &mut Vec<u8>, job: &NewJob, form: Form) -> bool {
        if job.unique.is_none() && job.timeout.is_none() && form == Form::Args {
            out.push(b'{');
            return false;
        }
        out.extend_from_slice(Self::OPENING);
        let mut separator = b'{';
        let mut part = |out: &mut Vec<u8>, name: &str| {
            out.push(std::mem::replace(&mut separator, b','));
            text::quote(out, name);
            out.push(b':');
        };
        if let Some(unique) = &job.unique {
            part(out, "unique");
            write_unique(out, unique);
        }
        if let Some(timeout) = job.timeout {
            part(out, "timeout_ms");
            out.extend_from_slice(whole_millis(timeout).to_string().as_bytes());
        }
        if let Some(name) = form.name() {
            part(out, "payload");
            text::quote(out, name);
        }
        out.push(b'}');
        true
    }
}

fn write_unique(out: &mut Vec<u8>, unique: &Unique) {
    out.extend_from_slice(b"{\"key\":");
    text::quote(out, unique.key.as_str());
    out.extend_from_slice(b",\"window\":");
    match unique.window {
        Window::WhileQueued => text::quote(out, "queued"),
        Window::UntilDone => text::quote(out, "done"),
        Window::For(period) => out.extend_from_slice(whole_millis(period).to_string().as_bytes()),
    }
    out.extend_from_slice(b",\"clash\":");
    let clash = match unique.clash {
        Clash::KeepFirst => "first",
        Clash::ReplacePayload => "replace",
    };
    text::quote(out, clash);
    out.push(b'}');
}

fn unique(value: Value<'_>) -> Result<Unique, String> {
    const NAME: &str = "tidegate.unique";
    let object = object(value, NAME)?;
    let key = super::required(object.get("key"), "tidegate.unique.key")?;
    let window = object.get("window").ok_or("its `tidegate.unique` has no `window`")?;
    let window = match window.in_quotes() {
        Some(b"queued") => Window::WhileQueued,
        Some(b"done") => Window::UntilDone,
        _ => Window::For(millis(window).ok_or("its `tidegate.unique.window` is none that is known")?),
    };
    let clash = match object.get("clash").and_then(Value::in_quotes) {
        Some(b"first") => Clash::KeepFirst,
        Some(b"replace") => Clash::ReplacePayload,
        _ => return Err("its `tidegate.unique.clash` is none that is known".to_owned()),
    };
    Ok(Unique { key: UniqueKey::new(key), window, clash })
}

fn object<'a>(value: Value<'a>, name: &str) -> Result<Object<'a>, String> {
    Object::of(value.0).map_err(|_| format!("its `{name}` is no object"))
}

/// Rounded up: a limit that is there stays one.
fn whole_millis(period: Duration) -> u64 {
    let millis = period.as_nanos().div_ceil(1_000_000);
    // What reads it takes no greater numbers.
    u64::try_from(millis).unwrap_or(u64::MAX).min(i64::MAX as u64)
}

fn millis(value: Value<'_>) -> Option<Duration> {
    match value.number()? {
        Number::Whole(millis) => u64::try_from(millis).ok().map(Duration::from_millis),
        Number::Fraction(_) => None,
    }
}
