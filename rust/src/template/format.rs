//! Python's `'...' % values`, which minijinja doesn't have: `rewrite` makes it
//! this filter.

use minijinja::formatting::{format, FormatStyle};
use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::{filters, python, weight};

pub const FILTER: &str = "_percent_format";

/// `'format' % value`, a tuple being several values.
pub fn percent(state: &State, template: &str, value: Value) -> Result<String, Error> {
    let values: Vec<Value> = match value.kind() {
        ValueKind::Seq if value.is_tuple() => value.try_iter()?.collect(),
        _ => vec![value],
    };
    check_widths(template)?;
    let conversions = conversions(template);
    if conversions.is_none() && values.len() == 1 {
        weight::weigh(state, &values[0])?;
        // '%(name)s' names members of the one value.
        return format(FormatStyle::Printf, template, &values);
    }
    let conversions = conversions.unwrap_or_default();
    if conversions.len() != values.len() {
        return Err(python::error(format!(
            "{} values for {} places in {template:?}",
            values.len(),
            conversions.len()
        )));
    }
    let mut template = template.to_owned();
    let mut converted = Vec::new();
    for (&(at, conversion), value) in conversions.iter().zip(values) {
        converted.push(match conversion {
            'r' | 'a' => {
                template.replace_range(at..=at, "s");
                Value::from(python::repr(state, &value)?)
            }
            's' => Value::from(python::str(state, &value)?),
            'd' | 'i' | 'u' if value.is_number() && !value.is_integer() => {
                filters::truncated(f64::try_from(value)?)
                    .ok_or_else(|| python::error("the number is too large"))?
            }
            _ => value,
        });
    }
    format(FormatStyle::Printf, &template, &converted)
}

/// Refuses widths of five digits: padding is made before it is paid for.
pub fn check_widths(template: &str) -> Result<(), Error> {
    let mut digits = 0;
    for character in template.chars() {
        digits = if character.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 4 {
            return Err(python::error("a number in the format is too large"));
        }
    }
    Ok(())
}

/// Where the format's conversions are and which; none if they name members.
fn conversions(template: &str) -> Option<Vec<(usize, char)>> {
    let mut found = Vec::new();
    let mut characters = template.char_indices();
    while let Some((_, character)) = characters.next() {
        if character != '%' {
            continue;
        }
        for (at, character) in characters.by_ref() {
            match character {
                '(' => return None,
                '%' => break,
                c if c.is_alphabetic() => {
                    found.push((at, c));
                    break;
                }
                _ => {}
            }
        }
    }
    Some(found)
}
