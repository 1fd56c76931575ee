//! `tojson`, as Python's `json.dumps` writes it.

use std::fmt::Write;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, State, Value};

use super::{methods, python};

struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

pub fn tojson(
    state: &State,
    value: &Value,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let given = methods::named(&arguments.into_values(), &names)?;
    let given = |index: usize| given[index].clone().filter(|value| !value.is_none());
    let is_set = |index: usize| given(index).is_some_and(|value| value.is_true());

    let indent = given(1).map(|value| indent_text(&value)).transpose()?;
    let (item_separator, key_separator) = match given(2) {
        Some(pair) => separator_pair(&pair)?,
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = Style {
        ensure_ascii: is_set(0),
        indent,
        item_separator,
        key_separator,
        sort_keys: is_set(3),
    };
    let mut out = String::new();
    style.write(&mut out, value, 0, state)?;
    Ok(Value::from(out))
}

fn indent_text(value: &Value) -> Result<String, Error> {
    const MAX_INDENT: i64 = 64;
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    match value.as_i64() {
        Some(width) if width <= MAX_INDENT => Ok(" ".repeat(width.max(0) as usize)),
        _ => Err(python::error("tojson takes an indent of at most 64")),
    }
}

fn separator_pair(pair: &Value) -> Result<(String, String), Error> {
    let parts: Vec<Value> = pair.try_iter()?.collect();
    match parts.as_slice() {
        [item, key] if item.as_str().is_some() && key.as_str().is_some() => {
            Ok((item.to_string(), key.to_string()))
        }
        _ => Err(python::error("tojson takes a pair of separators")),
    }
}

impl Style {
    fn write(
        &self,
        out: &mut String,
        value: &Value,
        depth: usize,
        state: &State,
    ) -> Result<(), Error> {
        if depth > python::MAX_DEPTH {
            return Err(python::error("a value is nested too deep for tojson"));
        }
        state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)?),
            ValueKind::String => self.quote(out, value.as_str().unwrap_or_default(), state)?,
            // Slices of lists are iterables.
            ValueKind::Seq | ValueKind::Iterable => self.write_list(out, value, depth, state)?,
            ValueKind::Map => self.write_object(out, value, depth, state)?,
            kind => {
                return Err(python::error(format!(
                    "a value of type {kind} can't be written as JSON"
                )))
            }
        }
        Ok(())
    }

    fn write_list(
        &self,
        out: &mut String,
        list: &Value,
        depth: usize,
        state: &State,
    ) -> Result<(), Error> {
        out.push('[');
        let mut empty = true;
        for item in list.try_iter()?.checked() {
            self.begin_item(out, empty, depth + 1, state)?;
            self.write(out, &item?, depth + 1, state)?;
            empty = false;
        }
        self.end(out, empty, depth, ']');
        Ok(())
    }

    fn write_object(
        &self,
        out: &mut String,
        object: &Value,
        depth: usize,
        state: &State,
    ) -> Result<(), Error> {
        let mut pairs = Vec::new();
        for key in object.try_iter()?.checked() {
            let key = key?;
            pairs.push((key_text(&key)?, object.get_item(&key)?));
        }
        if self.sort_keys {
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
        }
        out.push('{');
        let empty = pairs.is_empty();
        for (index, (key, value)) in pairs.iter().enumerate() {
            self.begin_item(out, index == 0, depth + 1, state)?;
            self.quote(out, key, state)?;
            out.push_str(&self.key_separator);
            self.write(out, value, depth + 1, state)?;
        }
        self.end(out, empty, depth, '}');
        Ok(())
    }

    fn begin_item(
        &self,
        out: &mut String,
        first: bool,
        depth: usize,
        state: &State,
    ) -> Result<(), Error> {
        let indent = self.indent.as_ref().map_or(0, String::len);
        let separators = self.item_separator.len() + self.key_separator.len();
        // Twice the indent: the closing bracket may have a line of its own.
        state.consume_fuel((separators + 2 * indent * depth) as u64 / 64)?;
        if !first {
            out.push_str(&self.item_separator);
        }
        self.new_line(out, depth);
        Ok(())
    }

    fn end(&self, out: &mut String, empty: bool, depth: usize, close: char) {
        if !empty {
            self.new_line(out, depth);
        }
        out.push(close);
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn quote(&self, out: &mut String, text: &str, state: &State) -> Result<(), Error> {
        state.consume_fuel(text.len() as u64 / 64)?;
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
        Ok(())
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let number = f64::try_from(value.clone())?;
    Ok(if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        python::float(number)
    })
}

fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.to_string(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::Number => number(key)?,
        kind => {
            return Err(python::error(format!(
                "a key of type {kind} can't be written as JSON"
            )))
        }
    })
}

/// A value of the template language from JSON.
pub fn to_value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(whole)) => Value::from(whole),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(to_value).collect(),
        Json::Object(members) => object_to_value(members),
    }
}

pub fn object_to_value(members: &serde_json::Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(
        members
            .iter()
            .map(|(key, value)| (key.as_str(), to_value(value))),
    )
}
