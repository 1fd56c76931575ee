//! minijinja set up like transformers' Jinja environment.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};

use super::{filters, format, json, methods, namespaces, python, tests, weight};

const MAX_DEPTH: usize = 150;
/// Jinja2's sandbox allows no longer ones.
const MAX_RANGE: i64 = 100_000;

pub fn create() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
    {
        environment.set_syntax(syntax);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_formatter(print);
    environment.set_unknown_method_callback(methods::call);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("range", range);
    environment.add_function("dict", dict);
    environment.add_function("namespace", namespaces::namespace);
    environment.add_function("joiner", joiner);
    environment.add_function("cycler", cycler);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter(format::FILTER, format::percent);
    filters::add_to(&mut environment);
    tests::add_to(&mut environment);
    weight::add_to(&mut environment);
    // Not Jinja2's, or shows the program's inside.
    for name in ["bool", "chain", "lines", "split", "zip"] {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    environment
}

/// Made of text, because it prints what it is made of.
fn joiner(state: &State, separator: Option<Value>) -> Result<Value, Error> {
    let text = separator.map_or(Ok(", ".to_owned()), |value| python::str(state, &value))?;
    Ok(minijinja_contrib::globals::joiner(Some(Value::from(text))))
}

fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    if items.0.iter().any(|item| item.as_object().is_some()) {
        return Err(python::error("cycler() takes texts and numbers"));
    }
    minijinja_contrib::globals::cycler(items.0)
}

/// `{{ value }}` prints as Python's `str` would.
fn print(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => output.write_str(text).map_err(Error::from),
        None if value.is_undefined() => Ok(()),
        None => output.write_str(&python::str(state, value)?).map_err(Error::from),
    }
}

const RAISED: &str = "raise_exception: ";

fn raise_exception(state: &State, message: Value) -> Result<Value, Error> {
    let text = format!("{RAISED}{}", python::str(state, &message)?);
    Err(Error::new(ErrorKind::InvalidOperation, text))
}

/// The message of `raise_exception`, if the error comes from it.
pub fn raised(error: &Error) -> Option<&str> {
    error.detail()?.strip_prefix(RAISED)
}

fn range(arguments: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    kwargs.assert_all_used()?;
    let whole = |value: &Value| {
        value
            .as_i64()
            .filter(|_| value.kind() != ValueKind::String)
            .ok_or_else(|| python::error("range() takes whole numbers"))
    };
    let (start, stop, step) = match arguments.0.as_slice() {
        [stop] => (0, whole(stop)?, 1),
        [start, stop] => (whole(start)?, whole(stop)?, 1),
        [start, stop, step] => (whole(start)?, whole(stop)?, whole(step)?),
        _ => return Err(python::error("range() takes one to three numbers")),
    };
    if step == 0 {
        return Err(python::error("range() with step 0"));
    }
    let span = if step > 0 {
        i128::from(stop) - i128::from(start)
    } else {
        i128::from(start) - i128::from(stop)
    };
    let width = i128::from(step).abs();
    let count = ((span + width - 1) / width).max(0);
    if count > i128::from(MAX_RANGE) {
        return Err(python::error("range() of more than 100000 numbers"));
    }
    let item = |index: i128| Value::from((i128::from(start) + index * i128::from(step)) as i64);
    Ok((0..count).map(item).collect())
}

/// From a mapping or from pairs, with further members by name.
fn dict(source: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut members: Vec<(Value, Value)> = Vec::new();
    if let Some(source) = source {
        for item in source.try_iter()?.checked() {
            let item = item?;
            if source.kind() == ValueKind::Map {
                let value = source.get_item(&item)?;
                members.push((item, value));
                continue;
            }
            let pair: Vec<Value> = item.try_iter()?.collect();
            match pair.as_slice() {
                [key, value] => members.push((key.clone(), value.clone())),
                _ => return Err(python::error("dict() takes pairs")),
            }
        }
    }
    for name in kwargs.args() {
        members.push((Value::from(name), kwargs.get(name)?));
    }
    Ok(Value::from_pairs(members))
}
