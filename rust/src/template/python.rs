//! Values as Python shows them.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Deeper values are refused, like Python's recursion limit does.
pub const MAX_DEPTH: usize = 400;

pub fn error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// `str(value)`.
pub fn str(state: &State, value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(state, value),
    }
}

/// `repr(value)`. Paid for part by part: a value that holds another one twice,
/// and so on, has few parts and a text without end.
pub fn repr(state: &State, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(state, &mut out, value, 0)?;
    Ok(out)
}

fn write_repr(state: &State, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(error("a value is nested too deep to print"));
    }
    state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / 32))?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?));
        }
        ValueKind::Seq if value.is_tuple() => {
            let length = write_items(state, out, value, ('(', ')'), depth)?;
            if length == 1 {
                out.insert(out.len() - 1, ',');
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            write_items(state, out, value, ('[', ']'), depth)?;
        }
        ValueKind::Map if is_dict(value) => write_pairs(state, out, value, depth)?,
        _ => write!(out, "{value}").map_err(|_| error("a value can't be printed"))?,
    }
    Ok(())
}

/// A mapping made of data: objects like `loop` print themselves.
pub fn is_dict(value: &Value) -> bool {
    value.kind() == ValueKind::Map && !value.is_kwargs() && value.as_object().is_some()
}

fn write_items(
    state: &State,
    out: &mut String,
    value: &Value,
    (open, close): (char, char),
    depth: usize,
) -> Result<usize, Error> {
    out.push(open);
    let mut length = 0;
    for item in value.try_iter()?.checked() {
        if length > 0 {
            out.push_str(", ");
        }
        write_repr(state, out, &item?, depth + 1)?;
        length += 1;
    }
    out.push(close);
    Ok(length)
}

fn write_pairs(
    state: &State,
    out: &mut String,
    value: &Value,
    depth: usize,
) -> Result<(), Error> {
    out.push('{');
    for (index, key) in value.try_iter()?.checked().enumerate() {
        let key = key?;
        if index > 0 {
            out.push_str(", ");
        }
        write_repr(state, out, &key, depth + 1)?;
        out.push_str(": ");
        write_repr(state, out, &value.get_item(&key)?, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

/// `repr` of a float: the shortest digits that give it back.
pub fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

/// Single quotes unless only they would need escaping.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(mark);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xFF => write!(out, "\\x{code:02x}"),
                    0x100..=0xFFFF => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(mark);
}

/// Rust escapes for debugging what Python does: what has no shape of its own.
/// Python also escapes every space but the ASCII one.
fn is_printable(character: char) -> bool {
    match character {
        ' ' | '"' | '\'' => true,
        c if c.is_whitespace() => false,
        c => {
            let mut escaped = c.escape_debug();
            escaped.next() == Some(c) || is_mark(c)
        }
    }
}

/// Combining marks print in Python, and are escaped by `escape_debug` when
/// they stand alone.
fn is_mark(character: char) -> bool {
    format!("a{character}")
        .escape_debug()
        .any(|shown| shown == character)
}

/// `str.isspace` of one character.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (1e300, "1e+300"),
            (123456789.125, "123456789.125"),
            (-0.0, "-0.0"),
        ];
        for (value, text) in cases {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn strings() {
        let cases = [
            ("it's", "\"it's\""),
            ("a\"b'", "'a\"b\\''"),
            ("é\u{301}\u{200b}\u{a0}\n", "'é\u{301}\\u200b\\xa0\\n'"),
        ];
        for (text, shown) in cases {
            let list = Value::from(vec![text]);
            let environment = minijinja::Environment::new();
            let state = environment.empty_state();
            assert_eq!(str(&state, &list).unwrap(), format!("[{shown}]"));
        }
    }
}
