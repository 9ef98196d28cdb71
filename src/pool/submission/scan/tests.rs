//! The scanner against Python's rules and against another parser.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn checked(text: &str) -> Result<(), Malformed> {
    let mut scanner = Scanner::new(text.as_bytes());
    scanner.value(&mut ())?;
    scanner.end()
}

#[test]
fn what_python_reads_is_read() {
    for text in [
        " {} ",
        "[]",
        "[[],{}]",
        "-0",
        "1.5e+3",
        "1E9",
        "NaN",
        "[-Infinity, Infinity]",
        "true",
        r#""\ud800""#,
        r#"{"a":1,"a":[null]}"#,
        "\"\u{7f}ü\"",
        r#""\"\\\/\b\f\n\r\t""#,
        "0.10",
    ] {
        assert_eq!(checked(text), Ok(()), "{text}");
    }
}

#[test]
fn what_python_refuses_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "[1,]",
        "{,}",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        "{a:1}",
        "01",
        "1.",
        ".5",
        "+1",
        "-",
        "1e",
        "--1",
        "-NaN",
        "nan",
        "nul",
        "[1 2]",
        "[1}",
        "{]",
        "\"\n\"",
        r#""\x""#,
        r#""\u12g4""#,
        r#"""#,
        r#""\""#,
        "{} {}",
        "\u{feff}{}",
        "'a'",
        "1_0",
    ] {
        assert_eq!(checked(text), Err(Malformed::Syntax), "{text}");
    }
    assert_eq!(checked(&"9".repeat(MAX_DIGITS)), Ok(()));
    assert_eq!(checked(&"9".repeat(MAX_DIGITS + 1)), Err(Malformed::Syntax));
}

#[test]
fn nesting_is_bounded() {
    let half = MAX_NESTING / 2;
    let mixed = format!("{}1{}", "[{\"a\":".repeat(half), "}]".repeat(half));
    assert_eq!(checked(&mixed), Ok(()));
    let deep = |depth| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(checked(&deep(MAX_NESTING)), Ok(()));
    assert_eq!(checked(&deep(MAX_NESTING + 1)), Err(Malformed::Nesting));
    assert_eq!(checked(&"[".repeat(1_000_000)), Err(Malformed::Nesting));
}

#[test]
fn the_last_of_two_equal_keys_counts_however_it_is_written() {
    let json = Json::of(br#"{"key": 1, "k\u0065y": "two", "ke": 3}"#).unwrap();
    assert_eq!(json.get("key").and_then(Json::text).as_deref(), Some("two"));
    assert_eq!(json.get("none"), None);
}

#[test]
fn surrogates_make_one_character_or_none() {
    let text = |text: &'static str| Json(text.as_bytes()).text().unwrap();
    assert_eq!(text(r#""\ud83d\ude00\u00fc\t""#), "😀ü\t");
    assert_eq!(text(r#""\ud83dx\ude00""#), "\u{fffd}x\u{fffd}");
}

/// Any value, written with odd spaces and escapes.
fn odd_json() -> impl Strategy<Value = (Value, String)> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        ".{0,8}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    (value, any::<u64>()).prop_map(|(value, seed)| {
        let mut text = String::new();
        write(&value, seed, &mut text);
        (value, text)
    })
}

fn write(value: &Value, seed: u64, out: &mut String) {
    let seed = seed.rotate_left(9).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let space = [" ", "", "\n\t", "  \r\n"][(seed % 4) as usize];
    out.push_str(space);
    match value {
        Value::String(text) if seed.is_multiple_of(3) => {
            out.push('"');
            text.encode_utf16().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            out.push('"');
        }
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write(item, seed ^ at as u64, out);
            }
            out.push_str(&format!("{space}]"));
        }
        Value::Object(members) => {
            out.push('{');
            for (at, (key, item)) in members.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write(&Value::from(key.as_str()), seed ^ at as u64, out);
                out.push_str(&format!("{space}:"));
                write(item, seed ^ at as u64, out);
            }
            out.push_str(&format!("{space}}}"));
        }
        other => out.push_str(&other.to_string()),
    }
    out.push_str(space);
}

proptest! {
    #[test]
    fn spans_agree_with_a_real_parser((value, text) in odd_json()) {
        let json = Json::of(text.as_bytes()).unwrap();
        let read = |json: Json| serde_json::from_slice::<Value>(json.0).unwrap();
        prop_assert_eq!(read(json), value.clone());
        if let Value::Object(members) = &value {
            for (key, item) in members {
                prop_assert_eq!(&read(json.get(key).unwrap()), item);
            }
        }
        if let Value::Array(items) = &value {
            for (at, item) in items.iter().enumerate() {
                prop_assert_eq!(&read(json.item(at).unwrap()), item);
            }
        }
        if let Value::String(said) = &value {
            prop_assert_eq!(&*json.text().unwrap(), said.as_str());
        }
    }

    #[test]
    fn agrees_with_a_real_parser_on_what_is_json(
        text in r#"[\[\]{}":,0-9eE.+\-tfnu \\a]{0,24}"#,
    ) {
        // A lone surrogate is the one thing that Python takes and the other parser does not.
        if !text.contains("\\u") {
            let real = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(checked(&text).is_ok(), real);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Scanner::new(&bytes).value(&mut ());
        let json = Json(&bytes);
        let _ = (json.get("a"), json.item(0), json.text(), json.number());
    }

    #[test]
    fn strings_of_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let quoted = [b"\"\\", bytes.as_slice(), b"\""].concat();
        let _ = (Json(&quoted).text(), Json::of(&quoted));
    }
}
