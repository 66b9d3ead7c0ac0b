use proptest::prelude::*;
use serde::de::IgnoredAny;

use super::*;

/// Deeper than this `serde_json` reads no tree.
const SERDE_DEPTH: usize = 127;

/// What both say about a text; the depth only if they take it.
fn judged(text: &str) -> (Option<usize>, bool) {
    let ours = Value::of(text.as_bytes()).map(|(_, depth)| depth).ok();
    (ours, serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// A tree of our own reading, to compare: every value through [`Object`] and [`Value::first`].
fn tree(value: Value<'_>) -> serde_json::Value {
    if let Some(inner) = value.in_brackets() {
        let (mut elements, mut rest) = (Vec::new(), inner);
        let mut at = Value(value.0).first();
        while let Some(element) = at {
            elements.push(tree(element));
            // The next begins behind this one's comma.
            let end = element.0.as_ptr() as usize + element.0.len() - rest.as_ptr() as usize;
            rest = &rest[end..];
            let Some(comma) = rest.iter().position(|byte| *byte == b',') else { break };
            rest = &rest[comma + 1..];
            let bracketed = [b"[", rest, b"]"].concat();
            let length = Value(&bracketed).first().map(|next| next.0.len());
            let start = rest.iter().position(|byte| !is_space(*byte)).unwrap_or(0);
            at = length.map(|length| Value(&rest[start..start + length]));
        }
        return serde_json::Value::Array(elements);
    }
    if value.0.first() == Some(&b'{') {
        let object = Object::of(value.0).expect("it is an object");
        let fields = object
            .fields()
            .map(|(key, value)| (String::from_utf8(key.bytes().to_vec()).expect("text"), tree(value)));
        return serde_json::Value::Object(fields.collect());
    }
    match value.text() {
        Some(text) => serde_json::Value::String(text.into_owned()),
        None => serde_json::from_slice(value.0).expect("a plain value"),
    }
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        "-?(0|[1-9][0-9]{0,9})(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,2})?",
        "\"([a-zé\u{1f980} ]|\\\\[\"\\\\/bfnrt]|\\\\u00[0-7][0-9a-fA-F]){0,8}\"",
    ];
    let spaced = ("[ \n]?", leaf, "[\t\r]?").prop_map(|(before, leaf, after)| before + &leaf + &after);
    spaced.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(|list| format!("[{}]", list.join(","))),
            proptest::collection::vec(("[a-c]|\\\\u0061|\\\\n", "[ ]?", inner), 0..5).prop_map(|fields| {
                let fields = fields.iter().map(|(key, space, value)| format!(" \"{key}\"{space}:{value}"));
                format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn every_json_is_taken_with_the_values_that_serde_reads(text in json()) {
        let (value, _) = Value::of(text.as_bytes()).expect("it is JSON");
        prop_assert_eq!(value.0, text.trim_ascii().as_bytes());
        let expected: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        prop_assert_eq!(tree(value), expected);
    }

    #[test]
    fn what_is_nearly_json_is_taken_just_when_serde_takes_it(text in json(), at in any::<prop::sample::Index>(), with in "[\\[\\]{}\",:0-9eE.+\\-nt\\\\u \u{0}\n]?|é") {
        let at = text.char_indices().nth(at.index(text.chars().count())).map_or(0, |(at, _)| at);
        for kept in [at, at + text[at..].chars().next().map_or(0, char::len_utf8)] {
            let broken = format!("{}{with}{}", &text[..at], &text[kept..]);
            let (ours, serdes) = judged(&broken);
            prop_assert_eq!(ours.is_some(), serdes, "{:?}", broken);
        }
    }

    #[test]
    fn any_signs_are_taken_just_when_serde_takes_them(text in "([\\[\\]{}\",: \n]|\"a\"|-|0|1|\\.|e|\\+|null|true|\\\\|\\\\u12aF|\u{1}|\u{a0}|\u{feff}){0,12}") {
        let (ours, serdes) = judged(&text);
        prop_assert_eq!(ours.is_some(), serdes, "{:?}", text);
    }

    #[test]
    fn bytes_that_are_no_utf_8_are_taken_in_strings_only(text in json(), at in any::<prop::sample::Index>(), byte in 0x80_u8..) {
        let mut bytes = text.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        // With a letter in its place it is JSON just when it stands in a string (and is no part of an escape).
        let mut lettered = text.into_bytes();
        lettered[at] = b'z';
        prop_assert_eq!(Value::of(&bytes).is_ok(), Value::of(&lettered).is_ok());
    }
}

#[test]
fn nesting_is_bounded_and_nothing_recurses() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        let each = open.len() - open.replace(['[', '{'], "").len();
        let nested = |depth: usize| {
            let (open, close) = (open.repeat(depth / each), close.repeat(depth / each));
            format!("{open}1{close}")
        };
        assert_eq!(judged(&nested(MAX_DEPTH)), (Some(MAX_DEPTH), true), "{open}");
        assert_eq!(judged(&nested(MAX_DEPTH + each)).0, None, "{open}");
        assert!(serde_json::from_str::<serde_json::Value>(&nested(SERDE_DEPTH - 1)).is_ok());
        assert!(Value::of(open.repeat(1 << 20).as_bytes()).is_err());
    }
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    let deepest = nested(MAX_DEPTH - 1);
    assert_eq!(Object::of(deepest.as_bytes()).expect("it is an object").depth(), MAX_DEPTH);
    assert!(Object::of(nested(MAX_DEPTH).as_bytes()).is_err());
}

#[test]
fn an_object_knows_its_fields_and_what_is_wrong_is_said_with_its_place() {
    let object = Object::of(b" {\"a\": 1 , \"\\u0062\":\t[2] \n}\n").expect("it is an object");
    assert_eq!(object.len(), 2);
    assert_eq!(object.get("a"), Some(Value(b"1")));
    assert_eq!(object.get("b"), Some(Value(b"[2]")));
    assert_eq!(object.get_spaced("b"), Some(&b"\t[2] \n"[..]));
    assert_eq!(object.get("c"), None);
    for (text, flaw) in [
        ("", "no object at byte 0"),
        (" []", "no object at byte 1"),
        ("{\"a\"=1}", "no `:` after a key at byte 4"),
        ("{\"a\":01}", "neither `,` nor `}` after a field at byte 6"),
        ("{\"a\":-}", "no digit where a number needs one at byte 6"),
        ("{\"a\":[1,]}", "no value at byte 8"),
        ("{\"a\":1,}", "no key in quotes at byte 7"),
        ("{\"a\":{\"b\":1,}}", "no key in quotes at byte 12"),
        ("{\"a\":\"\\x\"}", "no escape that JSON knows at byte 6"),
        ("{\"a\":\"\\u12x4\"}", "no four hexadecimal digits after `\\u` at byte 6"),
        ("{\"a\":\"\n\"}", "a control character in a string at byte 6"),
        ("{\"a\":\"b", "a string without end at byte 7"),
        ("{\"a\":1} \u{0}", "something behind the end at byte 8"),
        ("\u{feff}{}", "no object at byte 0"),
    ] {
        let error = Object::of(text.as_bytes()).expect_err(text);
        assert_eq!(error.to_string(), flaw, "{text}");
    }
}

#[test]
fn no_control_character_stands_in_a_string() {
    for byte in 0..=0x20_u8 {
        let text = [b'"', byte, b'"'];
        assert_eq!(Value::of(&text).is_ok(), byte == 0x20, "{byte:#x}");
    }
}

#[test]
fn the_first_element_is_found() {
    let first = |text: &str| {
        Value(text.as_bytes()).first().map(|value| String::from_utf8_lossy(value.0).into_owned())
    };
    assert_eq!(first("[ {\"a\":[1]} , 2]").as_deref(), Some("{\"a\":[1]}"));
    assert_eq!([first("[]"), first("[ ]"), first("{}"), first("1")], [None, None, None, None]);
}
