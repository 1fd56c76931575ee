//! The methods of Python's strings, dicts and lists.

use minijinja::value::{from_args, Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::python::{self, is_space};
use super::case::{capitalize, swap_case, title};
use super::{format, weight};

/// Called for methods that minijinja itself doesn't know.
pub fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    for argument in arguments {
        weight::weigh(state, argument)?;
    }
    if matches!(method, "count" | "index") {
        weight::weigh(state, value)?;
    }
    let own = match value.kind() {
        ValueKind::String => string(state, value.as_str().unwrap_or_default(), method, arguments),
        ValueKind::Map => dict(value, method, arguments),
        ValueKind::Seq => list(value, method, arguments),
        _ => None,
    };
    own.unwrap_or_else(|| pycompat::unknown_method_callback(state, value, method, arguments))
}

/// Positional arguments first, then those given by name.
pub fn named(arguments: &[Value], names: &[&str]) -> Result<Vec<Option<Value>>, Error> {
    let (positional, kwargs): (&[Value], Kwargs) = from_args(arguments)?;
    if positional.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut values: Vec<Option<Value>> = positional.iter().cloned().map(Some).collect();
    for name in &names[positional.len()..] {
        values.push(kwargs.get::<Option<Value>>(name)?);
    }
    kwargs.assert_all_used()?;
    Ok(values)
}

fn whole(value: &Option<Value>, default: i64) -> Result<i64, Error> {
    match value {
        None => Ok(default),
        Some(value) if value.is_none() => Ok(default),
        Some(value) => value
            .as_i64()
            .ok_or_else(|| python::error("a whole number was expected")),
    }
}

fn text<'a>(value: &'a Option<Value>, what: &str) -> Result<&'a str, Error> {
    value
        .as_ref()
        .and_then(Value::as_str)
        .ok_or_else(|| python::error(format!("{what} must be a string")))
}

fn optional_text(value: &Option<Value>) -> Result<Option<&str>, Error> {
    match value {
        None => Ok(None),
        Some(value) if value.is_none() => Ok(None),
        some => text(some, "the argument").map(Some),
    }
}

fn string(
    state: &State,
    s: &str,
    method: &str,
    arguments: &[Value],
) -> Option<Result<Value, Error>> {
    let none = || named(arguments, &[]);
    let yes_if = |test: fn(&str) -> bool| none().map(|_| Value::from(test(s)));
    let changed = |change: fn(&str) -> String| none().map(|_| Value::from(change(s)));
    Some(match method {
        "strip" => strip(s, arguments, true, true),
        "lstrip" => strip(s, arguments, true, false),
        "rstrip" => strip(s, arguments, false, true),
        "split" => split(s, arguments),
        "rsplit" => rsplit(s, arguments),
        "splitlines" => split_lines(s, arguments),
        "partition" => partition(s, arguments, false),
        "rpartition" => partition(s, arguments, true),
        "startswith" => affix(s, arguments, |s, affix| s.starts_with(affix)),
        "endswith" => affix(s, arguments, |s, affix| s.ends_with(affix)),
        "removeprefix" => remove(s, arguments, |s, affix| s.strip_prefix(affix)),
        "removesuffix" => remove(s, arguments, |s, affix| s.strip_suffix(affix)),
        "index" => find(s, arguments, false, true),
        "rindex" => find(s, arguments, true, true),
        "find" => find(s, arguments, false, false),
        "rfind" => find(s, arguments, true, false),
        "count" => count(s, arguments),
        "replace" => replace(state, s, arguments),
        "title" => changed(title),
        "capitalize" => changed(capitalize),
        "swapcase" => changed(swap_case),
        "casefold" => changed(str::to_lowercase),
        "expandtabs" => expand_tabs(state, s, arguments),
        "zfill" => zero_fill(state, s, arguments),
        "ljust" => justify(state, s, arguments, Side::Left),
        "rjust" => justify(state, s, arguments, Side::Right),
        "center" => justify(state, s, arguments, Side::Center),
        "isspace" => yes_if(|s| !s.is_empty() && s.chars().all(is_space)),
        "isdecimal" | "isdigit" => {
            yes_if(|s| !s.is_empty() && s.chars().all(|c| c.is_numeric() && !is_fraction(c)))
        }
        "istitle" => yes_if(|s| title(s) == s && s.chars().any(char::is_alphabetic)),
        "isidentifier" => yes_if(is_identifier),
        "format" => match format::check_widths(s) {
            Ok(()) => return None,
            Err(error) => Err(error),
        },
        "join" => join(state, s, arguments),
        _ => return None,
    })
}

fn strip(s: &str, arguments: &[Value], left: bool, right: bool) -> Result<Value, Error> {
    let values = named(arguments, &["chars"])?;
    let chars = optional_text(&values[0])?;
    let unwanted = |c: char| chars.map_or(is_space(c), |chars| chars.contains(c));
    let mut s = s;
    if left {
        s = s.trim_start_matches(unwanted);
    }
    if right {
        s = s.trim_end_matches(unwanted);
    }
    Ok(Value::from(s))
}

fn split(s: &str, arguments: &[Value]) -> Result<Value, Error> {
    let values = named(arguments, &["sep", "maxsplit"])?;
    let limit = whole(&values[1], -1)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX - 1);
    Ok(match optional_text(&values[0])? {
        Some("") => return Err(python::error("empty separator")),
        Some(separator) => s.splitn(limit + 1, separator).map(Value::from).collect(),
        None => words(s, limit).into_iter().map(Value::from).collect(),
    })
}

/// Words between runs of whitespace; the rest of the text after `limit` cuts.
fn words(s: &str, limit: usize) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = s.trim_start_matches(is_space);
    while !rest.is_empty() {
        if found.len() == limit {
            found.push(rest.trim_end_matches(is_space));
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        found.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    found
}

fn rsplit(s: &str, arguments: &[Value]) -> Result<Value, Error> {
    let values = named(arguments, &["sep", "maxsplit"])?;
    let limit = whole(&values[1], -1)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match optional_text(&values[0])? {
        Some("") => return Err(python::error("empty separator")),
        Some(separator) => s.rsplitn(limit + 1, separator).collect(),
        None => {
            let mut found = Vec::new();
            let mut rest = s.trim_end_matches(is_space);
            while !rest.is_empty() {
                if found.len() == limit {
                    found.push(rest.trim_start_matches(is_space));
                    break;
                }
                let start = rest
                    .char_indices()
                    .rev()
                    .find(|&(_, c)| is_space(c))
                    .map_or(0, |(at, c)| at + c.len_utf8());
                found.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_space);
            }
            found
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

fn split_lines(s: &str, arguments: &[Value]) -> Result<Value, Error> {
    let values = named(arguments, &["keepends"])?;
    let keep = values[0].as_ref().is_some_and(Value::is_true);
    let ends_line = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let end = rest.find(ends_line).unwrap_or(rest.len());
        let mark = match &rest[end..] {
            after if after.starts_with("\r\n") => 2,
            after => after.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(Value::from(&rest[..if keep { end + mark } else { end }]));
        rest = &rest[end + mark..];
    }
    Ok(Value::from(lines))
}

fn partition(s: &str, arguments: &[Value], last: bool) -> Result<Value, Error> {
    let values = named(arguments, &["sep"])?;
    let separator = text(&values[0], "the separator")?;
    if separator.is_empty() {
        return Err(python::error("empty separator"));
    }
    let found = if last {
        s.rsplit_once(separator)
    } else {
        s.split_once(separator)
    };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if last => ["", "", s],
        None => [s, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// Part of the text, as slices with `start` and `end` give it.
fn part<'a>(s: &'a str, start: i64, end: Option<i64>) -> Option<(&'a str, usize)> {
    let length = s.chars().count() as i64;
    let clamp = |index: i64| if index < 0 { (index + length).max(0) } else { index };
    let (start, end) = (clamp(start), clamp(end.unwrap_or(length)).min(length));
    if start > end {
        return None;
    }
    let byte = |index: i64| {
        s.char_indices()
            .nth(index as usize)
            .map_or(s.len(), |(at, _)| at)
    };
    Some((&s[byte(start)..byte(end)], start as usize))
}

fn end_of(value: &Option<Value>) -> Result<Option<i64>, Error> {
    match value {
        Some(value) if !value.is_none() => whole(&Some(value.clone()), 0).map(Some),
        _ => Ok(None),
    }
}

fn affix(s: &str, arguments: &[Value], test: fn(&str, &str) -> bool) -> Result<Value, Error> {
    let values = named(arguments, &["affix", "start", "end"])?;
    let wanted = values[0]
        .as_ref()
        .ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let Some((s, _)) = part(s, whole(&values[1], 0)?, end_of(&values[2])?) else {
        return Ok(Value::from(false));
    };
    if let Some(wanted) = wanted.as_str() {
        return Ok(Value::from(test(s, wanted)));
    }
    if !wanted.is_tuple() {
        return Err(python::error("a string or a tuple of strings was expected"));
    }
    for item in wanted.try_iter()? {
        if test(s, text(&Some(item), "each item")?) {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn remove(
    s: &str,
    arguments: &[Value],
    remove: for<'a> fn(&'a str, &str) -> Option<&'a str>,
) -> Result<Value, Error> {
    let values = named(arguments, &["affix"])?;
    let affix = text(&values[0], "the argument")?;
    Ok(Value::from(remove(s, affix).unwrap_or(s)))
}

fn find(s: &str, arguments: &[Value], last: bool, must: bool) -> Result<Value, Error> {
    let values = named(arguments, &["sub", "start", "end"])?;
    let wanted = text(&values[0], "the argument")?;
    let found = part(s, whole(&values[1], 0)?, end_of(&values[2])?).and_then(|(s, start)| {
        let at = if last { s.rfind(wanted) } else { s.find(wanted) };
        at.map(|at| start + s[..at].chars().count())
    });
    match found {
        Some(index) => Ok(Value::from(index)),
        None if must => Err(python::error("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

fn count(s: &str, arguments: &[Value]) -> Result<Value, Error> {
    let values = named(arguments, &["sub", "start", "end"])?;
    let wanted = text(&values[0], "the argument")?;
    let found = part(s, whole(&values[1], 0)?, end_of(&values[2])?);
    Ok(Value::from(
        found.map_or(0, |(s, _)| s.matches(wanted).count()),
    ))
}

fn replace(state: &State, s: &str, arguments: &[Value]) -> Result<Value, Error> {
    let values = named(arguments, &["old", "new", "count"])?;
    let (old, new) = (text(&values[0], "old")?, text(&values[1], "new")?);
    let limit = usize::try_from(whole(&values[2], -1)?).unwrap_or(usize::MAX);
    replaced(state, s, old, new, limit).map(Value::from)
}

pub fn replaced(
    state: &State,
    s: &str,
    old: &str,
    new: &str,
    limit: usize,
) -> Result<String, Error> {
    let matches = (s.len() / old.len().max(1) + 1).min(limit);
    charge(state, matches.saturating_mul(new.len()))?;
    Ok(s.replacen(old, new, limit))
}

/// Pays for text before it is made.
fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64)
}

enum Side {
    Left,
    Right,
    Center,
}

fn padding(s: &str, width: i64) -> usize {
    usize::try_from(width)
        .unwrap_or(0)
        .saturating_sub(s.chars().count())
}

fn justify(state: &State, s: &str, arguments: &[Value], side: Side) -> Result<Value, Error> {
    let values = named(arguments, &["width", "fillchar"])?;
    let width = whole(&values[0], 0)?;
    let fill = optional_text(&values[1])?.unwrap_or(" ");
    if fill.chars().count() != 1 {
        return Err(python::error("the fill character must be exactly one"));
    }
    let missing = padding(s, width);
    charge(state, missing.saturating_mul(fill.len()))?;
    let left = match side {
        Side::Left => 0,
        Side::Right => missing,
        Side::Center => missing / 2 + (missing & width as usize & 1),
    };
    Ok(Value::from(format!(
        "{}{s}{}",
        fill.repeat(left),
        fill.repeat(missing - left)
    )))
}

fn zero_fill(state: &State, s: &str, arguments: &[Value]) -> Result<Value, Error> {
    let values = named(arguments, &["width"])?;
    let missing = padding(s, whole(&values[0], 0)?);
    charge(state, missing)?;
    let sign = if s.starts_with(['+', '-']) { 1 } else { 0 };
    Ok(Value::from(format!(
        "{}{}{}",
        &s[..sign],
        "0".repeat(missing),
        &s[sign..]
    )))
}

fn expand_tabs(state: &State, s: &str, arguments: &[Value]) -> Result<Value, Error> {
    const MAX_TAB: i64 = 1000;
    let values = named(arguments, &["tabsize"])?;
    let tab = whole(&values[0], 8)?.clamp(0, MAX_TAB) as usize;
    let mut out = String::new();
    let mut column = 0;
    for c in s.chars() {
        match c {
            '\t' => {
                let missing = if tab == 0 { 0 } else { tab - column % tab };
                charge(state, missing)?;
                out.push_str(&" ".repeat(missing));
                column += missing;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(Value::from(out))
}

fn is_fraction(c: char) -> bool {
    matches!(c, '\u{bc}'..='\u{be}' | '\u{2150}'..='\u{218b}')
}

fn is_identifier(s: &str) -> bool {
    let mut chars = s.chars();
    chars
        .next()
        .is_some_and(|first| first == '_' || first.is_alphabetic())
        && chars.all(|c| c == '_' || c.is_alphanumeric())
}

fn join(state: &State, s: &str, arguments: &[Value]) -> Result<Value, Error> {
    let values = named(arguments, &["iterable"])?;
    let items = values[0]
        .as_ref()
        .ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let mut out = String::new();
    for (index, item) in items.try_iter()?.checked().enumerate() {
        if index > 0 {
            charge(state, s.len())?;
            out.push_str(s);
        }
        state.consume_fuel(1)?;
        out.push_str(text(&Some(item?), "each item to join")?);
    }
    Ok(Value::from(out))
}

fn dict(value: &Value, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    match method {
        "copy" => Some(named(arguments, &[]).map(|_| value.clone())),
        _ => None,
    }
}

fn list(value: &Value, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    match method {
        "copy" => Some(named(arguments, &[]).map(|_| value.clone())),
        "index" => Some(index(value, arguments)),
        _ => None,
    }
}

fn index(list: &Value, arguments: &[Value]) -> Result<Value, Error> {
    let values = named(arguments, &["value"])?;
    let wanted = values[0].clone().unwrap_or_default();
    for (index, item) in list.try_iter()?.checked().enumerate() {
        if item? == wanted {
            return Ok(Value::from(index));
        }
    }
    Err(python::error("the value is not in the list"))
}
