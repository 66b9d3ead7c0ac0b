use proptest::prelude::*;

use super::*;

fn edited(text: &str, changes: &[(&'static str, Option<&str>)]) -> String {
    let object = Object::of(text.as_bytes()).expect("it is an object");
    let mut edit = Edit::of(&object);
    for (name, value) in changes {
        match value {
            Some(value) => edit.set(name, *value),
            None => edit.remove(name),
        }
    }
    String::from_utf8(edit.finish()).expect("it was text")
}

#[test]
fn a_value_is_replaced_in_its_place() {
    let text = "{ \"a\" : 1 ,\n\"b\":[2] }";
    assert_eq!(edited(text, &[("a", Some("\"x\""))]), "{ \"a\" : \"x\" ,\n\"b\":[2] }");
    assert_eq!(edited(text, &[("b", Some("0")), ("a", Some("9"))]), "{ \"a\" : 9 ,\n\"b\":0 }");
    assert_eq!(
        edited("{\"\\u0061\":1}", &[("a", Some("2"))]),
        "{\"\\u0061\":2}",
        "a key may be written otherwise"
    );
}

#[test]
fn a_new_field_stands_at_the_end() {
    assert_eq!(edited("{ }", &[("a", Some("1"))]), "{\"a\":1 }");
    assert_eq!(edited("{}", &[("a", Some("1")), ("b", Some("2"))]), "{\"a\":1,\"b\":2}");
    assert_eq!(edited(" {\"x\":0\n} ", &[("a", Some("1"))]), " {\"x\":0,\"a\":1\n} ");
}

#[test]
fn a_removed_field_takes_one_comma_with_it() {
    let text = "{ \"a\":1 , \"b\":2 ,\t\"c\":3 }";
    assert_eq!(edited(text, &[("a", None)]), "{ \"b\":2 ,\t\"c\":3 }");
    assert_eq!(edited(text, &[("b", None)]), "{ \"a\":1 ,\t\"c\":3 }");
    assert_eq!(edited(text, &[("c", None)]), "{ \"a\":1 , \"b\":2 }");
    assert_eq!(edited(text, &[("a", None), ("b", None), ("c", None)]), "{  }");
    assert_eq!(edited(text, &[("a", None), ("b", None), ("c", None), ("d", Some("4"))]), "{ \"d\":4 }");
    assert_eq!(edited(text, &[("d", None)]), text);
}

#[test]
fn of_several_of_a_name_the_last_is_replaced_and_all_are_removed() {
    let text = "{\"a\":1,\"b\":2,\"a\":3}";
    assert_eq!(edited(text, &[("a", Some("9"))]), "{\"a\":1,\"b\":2,\"a\":9}");
    assert_eq!(edited(text, &[("a", None)]), "{\"b\":2}");
}

proptest! {
    /// Told by the pieces that the text was made of.
    #[test]
    fn every_other_byte_stays_where_it_was(
        fields in proptest::collection::vec(("[a-e]", "[ \n]?", "[ \t]?", "0|\"\\\\\"é\"|\\[1, \\{\\}\\]|-1e5", "[ \r]?"), 0..6),
        ends in ("[ ]?", "[ ]?"),
        set in "[a-e]",
        removed in "[a-e]",
    ) {
        prop_assume!(set != removed);
        let name = |name: &str| ["a", "b", "c", "d", "e"].into_iter().find(|known| *known == name).expect("a known one");
        let text = |value: &dyn Fn(usize) -> Option<String>| {
            let parts = fields.iter().enumerate().filter_map(|(index, (key, before, inner, _, after))| {
                Some(format!("{before}\"{key}\":{inner}{}{after}", value(index)?))
            });
            parts.collect::<Vec<_>>()
        };
        let whole = text(&|index| Some(fields[index].3.clone()));
        let whole = format!("{}{{{}}}{}", ends.0, whole.join(","), ends.1);
        let result = edited(&whole, &[(name(&set), Some("true")), (name(&removed), None)]);
        let last = fields.iter().rposition(|field| field.0 == set);
        let object = Object::of(result.as_bytes()).expect("it is an object still");
        let is: Vec<(String, String)> = object.fields().map(|(key, value)| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
            (text(key.bytes()), text(value.0))
        }).collect();
        let mut should: Vec<(String, String)> = fields.iter().enumerate().filter(|(_, field)| field.0 != removed)
            .map(|(index, field)| (field.0.clone(), if Some(index) == last { "true".to_owned() } else { field.3.clone() }))
            .collect();
        if last.is_none() {
            should.push((set.clone(), "true".to_owned()));
        }
        prop_assert_eq!(is, should);
        if !fields.iter().any(|field| field.0 == removed) && let Some(last) = last {
            let replaced = text(&|index| Some(if index == last { "true".to_owned() } else { fields[index].3.clone() }));
            prop_assert_eq!(result, format!("{}{{{}}}{}", ends.0, replaced.join(","), ends.1));
        }
    }
}
