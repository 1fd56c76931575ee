//! Pays for values that are walked as a whole. minijinja counts the parts of a
//! value, but not their parts: one that holds another twice, which holds
//! another twice, and so on, has few parts and takes forever to compare, sort
//! or write. `guards` puts these filters around operands.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{filters, tests, Environment, Error, State, Value};

use super::python;

pub const WEIGH: &str = "_weigh";
pub const WEIGH_ITEMS: &str = "_weigh_items";
pub const SHORT: &str = "_short";

/// Lists that are made longer by `+` and `*`, which cost nothing at first.
const MAX_ITEMS: usize = 100_000;

pub fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter(WEIGH, |state: &State, value: Value| -> Result<Value, Error> {
        weigh(state, &value)?;
        Ok(value)
    });
    environment.add_filter(WEIGH_ITEMS, |state: &State, value: Value| -> Result<Value, Error> {
        if value.kind() != ValueKind::Map {
            weigh(state, &value)?;
        }
        Ok(value)
    });
    environment.add_filter(SHORT, short);
    environment.add_filter("sort", sort);
    environment.add_filter("unique", unique);
    environment.add_filter("min", min);
    environment.add_filter("max", max);
    environment.add_filter("sum", sum);
    environment.add_filter("groupby", group_by);
    environment.add_filter("attr", attr);
    environment.add_filter("selectattr", select_attr);
    environment.add_filter("rejectattr", reject_attr);
    add_tests(environment);
}

/// Pays for all parts of a value, however often they occur.
pub fn weigh(state: &State, value: &Value) -> Result<(), Error> {
    walk(state, value, 0)
}

fn walk(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > python::MAX_DEPTH {
        return Err(python::error("a value is nested too deep"));
    }
    let text = value.as_str().map_or(0, |text| text.len() as u64 / 64);
    state.consume_fuel(u64::from(depth > 0) + text)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()?.checked() {
                walk(state, &item?, depth + 1)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()?.checked() {
                let key = key?;
                walk(state, &key, depth + 1)?;
                walk(state, &value.get_item(&key)?, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Refuses lists that are too long. Empty ones and those of unknown length are
/// made anew: they can hide any number of others.
fn short(state: &State, value: Value) -> Result<Value, Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) || value.is_tuple() {
        return Ok(value);
    }
    let length = match value.len() {
        Some(0) => return Ok(Value::from(Vec::<Value>::new())),
        Some(length) => length,
        None => {
            let mut items = Vec::new();
            for item in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
                items.push(item?);
            }
            return Ok(Value::from(items));
        }
    };
    match length {
        0..=MAX_ITEMS => Ok(value),
        _ => Err(python::error("a list of more than 100000 items")),
    }
}

/// As often as sorting compares an item.
fn weigh_to_sort(state: &State, value: &Value) -> Result<(), Error> {
    let length = value.len().unwrap_or(MAX_ITEMS);
    for _ in 0..=usize::BITS - length.leading_zeros() {
        weigh(state, value)?;
    }
    Ok(())
}

fn sort(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    weigh_to_sort(state, &value)?;
    filters::sort(state, value, kwargs)
}

fn unique(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    weigh_to_sort(state, &value)?;
    filters::unique(state, value, kwargs)
}

fn min(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    weigh(state, &value)?;
    filters::min(state, value, kwargs)
}

fn max(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    weigh(state, &value)?;
    filters::max(state, value, kwargs)
}

fn sum(
    state: &State,
    value: Value,
    attribute: Option<&str>,
    start: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    weigh(state, &value)?;
    short(state, filters::sum(state, value, attribute, start, kwargs)?)
}

fn group_by(
    state: &State,
    value: Value,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    weigh_to_sort(state, &value)?;
    filters::groupby(value, attribute, kwargs)
}

fn attr(state: &State, value: &Value, key: &Value) -> Result<Value, Error> {
    weigh(state, key)?;
    filters::attr(value, key)
}

fn select_attr(
    state: &mut State,
    value: Value,
    attribute: &str,
    test: Option<&str>,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Vec<Value>, Error> {
    filters::selectattr(state, value, attribute.into(), test.map(Into::into), arguments)
}

fn reject_attr(
    state: &mut State,
    value: Value,
    attribute: &str,
    test: Option<&str>,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Vec<Value>, Error> {
    filters::rejectattr(state, value, attribute.into(), test.map(Into::into), arguments)
}

/// The tests that compare, by all their names.
fn add_tests(environment: &mut Environment<'static>) {
    type Test = fn(&State, &Value, &Value) -> Result<bool, Error>;
    let compare: [(&[&str], Test); 6] = [
        (&["eq", "equalto", "=="], |state, a, b| weighed(state, a, b, tests::is_eq)),
        (&["ne", "!="], |state, a, b| weighed(state, a, b, tests::is_ne)),
        (&["lt", "lessthan", "<"], |state, a, b| weighed(state, a, b, tests::is_lt)),
        (&["le", "<="], |state, a, b| weighed(state, a, b, tests::is_le)),
        (&["gt", "greaterthan", ">"], |state, a, b| weighed(state, a, b, tests::is_gt)),
        (&["ge", ">="], |state, a, b| weighed(state, a, b, tests::is_ge)),
    ];
    for (names, test) in compare {
        for name in names {
            environment.add_test(*name, test);
        }
    }
    environment.add_test("in", |state: &State, a: &Value, b: &Value| {
        weigh(state, a)?;
        weigh(state, b)?;
        tests::is_in(state, a, b)
    });
    for name in ["startingwith", "endingwith"] {
        environment.remove_test(name);
    }
}

fn weighed(
    state: &State,
    a: &Value,
    b: &Value,
    test: fn(&Value, &Value) -> bool,
) -> Result<bool, Error> {
    weigh(state, a)?;
    weigh(state, b)?;
    Ok(test(a, b))
}
