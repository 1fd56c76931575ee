//! Filters that Jinja2 has and minijinja has not, or answers otherwise.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::format;
use super::case;
use super::methods::{self, named};
use super::{python, weight};

pub fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("string", |state: &State, value: &Value| python::str(state, value));
    environment.add_filter("safe", safe);
    environment.add_filter("upper", upper);
    environment.add_filter("lower", lower);
    environment.add_filter("title", title);
    environment.add_filter("capitalize", capitalize);
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    for name in ["e", "escape"] {
        environment.add_filter(name, |state: &State, value: &Value| match value.is_safe() {
            true => Ok(value.clone()),
            false => escape(state, value),
        });
    }
    environment.add_filter("forceescape", escape);
    environment.add_filter("indent", indent);
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", center);
    environment.add_filter("wordcount", word_count);
    environment.add_filter("urlencode", url_encode);
    environment.add_filter("dictsort", dict_sort);
    environment.add_filter("join", join);
    environment.add_filter("pprint", |state: &State, value: &Value| python::repr(state, value));
    environment.add_filter("format", |state: &State, template: &str, values: Rest<Value>| {
        format::percent(state, template, Value::from(Tuple::from(values.0)))
    });
}

fn defined(value: &Value) -> Result<(), Error> {
    match value.is_undefined() {
        true => Err(python::error("the value is undefined")),
        false => Ok(()),
    }
}

/// Arguments by position or name.
fn arguments(given: Rest<ValueOrKwargs>, names: &[&str]) -> Result<Vec<Option<Value>>, Error> {
    named(&given.into_values(), names)
}

fn whole(value: &Option<Value>, default: i64) -> Result<i64, Error> {
    match value {
        None => Ok(default),
        Some(value) => value
            .as_i64()
            .ok_or_else(|| python::error("a whole number was expected")),
    }
}

fn int(value: &Value, given: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    defined(value)?;
    let given = arguments(given, &["default", "base"])?;
    let default = given[0].clone().unwrap_or_else(|| Value::from(0));
    let base = whole(&given[1], 10)?;
    Ok(match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.clone(),
        ValueKind::Number => truncated(f64::try_from(value.clone())?).unwrap_or(default),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            parse_int(text, base)
                .or_else(|| parse_float(text).and_then(truncated))
                .unwrap_or(default)
        }
        _ => default,
    })
}

pub fn truncated(number: f64) -> Option<Value> {
    (number.is_finite() && number.abs() < 1e38).then(|| {
        let whole = number.trunc() as i128;
        i64::try_from(whole).map_or_else(|_| Value::from(whole), Value::from)
    })
}

/// As Python's `int(text, base)` takes them.
fn parse_int(text: &str, base: i64) -> Option<Value> {
    let text = text.trim_matches(python::is_space);
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let prefixes = [("0x", 16), ("0o", 8), ("0b", 2)];
    let lower = digits.to_ascii_lowercase();
    let found = prefixes
        .iter()
        .find(|(prefix, radix)| lower.starts_with(prefix) && (base == 0 || base == *radix));
    let (digits, radix) = match found {
        Some((_, radix)) => (&digits[2..], *radix),
        None => (digits, if base == 0 { 10 } else { base }),
    };
    if !(2..=36).contains(&radix) || digits.starts_with('_') || digits.starts_with(['+', '-']) {
        return None;
    }
    let value = i128::from_str_radix(&digits.replace('_', ""), radix as u32).ok()?;
    let value = if negative { -value } else { value };
    Some(i64::try_from(value).map_or_else(|_| Value::from(value), Value::from))
}

fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(python::is_space);
    text.replace('_', "").parse().ok()
}

fn float(value: &Value, given: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    defined(value)?;
    let given = arguments(given, &["default"])?;
    let default = given[0].clone().unwrap_or_else(|| Value::from(0.0));
    Ok(match value.kind() {
        ValueKind::Bool => Value::from(if value.is_true() { 1.0 } else { 0.0 }),
        ValueKind::Number => Value::from(f64::try_from(value.clone())?),
        ValueKind::String => {
            parse_float(value.as_str().unwrap_or_default()).map_or(default, Value::from)
        }
        _ => default,
    })
}

fn safe(state: &State, value: &Value) -> Result<Value, Error> {
    Ok(Value::from_safe_string(python::str(state, value)?))
}

fn upper(state: &State, value: &Value) -> Result<String, Error> {
    Ok(python::str(state, value)?.to_uppercase())
}

fn lower(state: &State, value: &Value) -> Result<String, Error> {
    Ok(python::str(state, value)?.to_lowercase())
}

fn title(state: &State, value: &Value) -> Result<String, Error> {
    Ok(minijinja::filters::title(python::str(state, value)?.into()))
}

fn capitalize(state: &State, value: &Value) -> Result<String, Error> {
    Ok(case::capitalize(&python::str(state, value)?))
}

fn trim(state: &State, value: &Value, given: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let given = arguments(given, &["chars"])?;
    let text = python::str(state, value)?;
    Ok(match given[0].as_ref().filter(|chars| !chars.is_none()) {
        None => text.trim_matches(python::is_space).to_owned(),
        Some(chars) => {
            let chars = python::str(state, chars)?;
            text.trim_matches(|c| chars.contains(c)).to_owned()
        }
    })
}

fn replace(state: &State, value: &Value, given: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let given = arguments(given, &["old", "new", "count"])?;
    let (Some(old), Some(new)) = (&given[0], &given[1]) else {
        return Err(python::error("replace takes an old and a new text"));
    };
    let limit = match &given[2] {
        Some(count) if !count.is_none() => whole(&given[2], -1)?,
        _ => -1,
    };
    methods::replaced(
        state,
        &python::str(state, value)?,
        &python::str(state, old)?,
        &python::str(state, new)?,
        usize::try_from(limit).unwrap_or(usize::MAX),
    )
}

fn escape(state: &State, value: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for character in python::str(state, value)?.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

fn indent(state: &State, value: &Value, given: Rest<ValueOrKwargs>) -> Result<String, Error> {
    const MAX_WIDTH: i64 = 1000;
    let given = arguments(given, &["width", "first", "blank"])?;
    let margin = match given[0].as_ref().and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => " ".repeat(whole(&given[0], 4)?.clamp(0, MAX_WIDTH) as usize),
    };
    let is_set = |index: usize| given[index].as_ref().is_some_and(Value::is_true);
    let (first, blank) = (is_set(1), is_set(2));
    let text = python::str(state, value)?;
    let lines: Vec<&str> = text.lines().collect();
    let ends_open = text.ends_with('\n') || text.is_empty();
    let lines = lines.iter().copied().chain(ends_open.then_some(""));
    let mut out = String::new();
    for (index, line) in lines.enumerate() {
        state.consume_fuel(1 + margin.len() as u64 / 64)?;
        if index > 0 {
            out.push('\n');
        }
        let wanted = if index == 0 { first } else { blank || !line.is_empty() };
        if wanted {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn truncate(state: &State, value: &Value, given: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let given = arguments(given, &["length", "killwords", "end", "leeway"])?;
    let text = python::str(state, value)?;
    let end = given[2].as_ref().map_or(Ok("...".to_owned()), |end| python::str(state, end))?;
    let length = whole(&given[0], 255)?.max(0) as usize;
    let leeway = whole(&given[3], 5)?.max(0) as usize;
    let end_length = end.chars().count();
    if length < end_length {
        return Err(python::error("truncate to less than its end"));
    }
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept: String = text.chars().take(length - end_length).collect();
    let cut = match given[1].as_ref().is_some_and(Value::is_true) {
        true => kept.as_str(),
        false => kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words),
    };
    Ok(format!("{cut}{end}"))
}

fn center(state: &State, value: &Value, width: Option<i64>) -> Result<String, Error> {
    let text = python::str(state, value)?;
    let width = usize::try_from(width.unwrap_or(80)).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    state.consume_fuel(missing as u64 / 64)?;
    let left = missing / 2 + (missing & width & 1);
    Ok(format!(
        "{}{text}{}",
        " ".repeat(left),
        " ".repeat(missing - left)
    ))
}

fn word_count(state: &State, value: &Value) -> Result<usize, Error> {
    let text = python::str(state, value)?;
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    Ok(words.filter(|word| !word.is_empty()).count())
}

fn url_encode(state: &State, value: &Value) -> Result<String, Error> {
    let quote = |text: &str, safe: &str| {
        let mut out = String::new();
        for byte in text.bytes() {
            let c = char::from(byte);
            if c.is_ascii_alphanumeric() || "_.-~".contains(c) || safe.contains(c) {
                out.push(c);
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
        out
    };
    if value.kind() != ValueKind::Map {
        return Ok(quote(&python::str(state, value)?, "/"));
    }
    let mut pairs = Vec::new();
    for key in value.try_iter()?.checked() {
        let key = key?;
        let item = python::str(state, &value.get_item(&key)?)?;
        pairs.push(format!(
            "{}={}",
            quote(&python::str(state, &key)?, ""),
            quote(&item, "")
        ));
    }
    Ok(pairs.join("&"))
}

fn join(state: &mut State, value: &Value, given: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let given = arguments(given, &["d", "attribute"])?;
    let separator = given[0].as_ref().map_or(Ok(String::new()), |text| python::str(state, text))?;
    if value.is_undefined() {
        return Ok(String::new());
    }
    let items = match &given[1] {
        None => value.clone(),
        Some(attribute) => {
            let by = Kwargs::from_iter([("attribute", attribute.clone())]);
            state.apply_filter("map", &[value.clone(), by.into()])?
        }
    };
    let mut out = String::new();
    for (index, item) in items.try_iter()?.checked().enumerate() {
        if index > 0 {
            out.push_str(&separator);
        }
        let text = python::str(state, &item?)?;
        state.consume_fuel(1 + (separator.len() + text.len()) as u64 / 64)?;
        out.push_str(&text);
    }
    Ok(out)
}

/// What values are sorted by: text without regard to case.
fn sort_key(value: &Value, case_sensitive: bool) -> Value {
    match value.as_str() {
        Some(text) if !case_sensitive => Value::from(text.to_lowercase()),
        _ => value.clone(),
    }
}

fn dict_sort(state: &State, dict: &Value, given: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let given = arguments(given, &["case_sensitive", "by", "reverse"])?;
    let is_set = |index: usize| given[index].as_ref().is_some_and(Value::is_true);
    let by_value = match given[1].as_ref().map(|by| by.as_str()) {
        None | Some(Some("key")) => false,
        Some(Some("value")) => true,
        _ => return Err(python::error("dictsort is by 'key' or by 'value'")),
    };
    if dict.kind() != ValueKind::Map {
        return Err(python::error("dictsort sorts a mapping"));
    }
    let mut pairs = Vec::new();
    for key in dict.try_iter()?.checked() {
        let key = key?;
        let value = dict.get_item(&key)?;
        let by = sort_key(if by_value { &value } else { &key }, is_set(0));
        pairs.push((by, key, value));
    }
    state.consume_fuel(pairs.len() as u64 * 16)?;
    if by_value {
        weight::weigh(state, dict)?;
    }
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    if is_set(2) {
        // Python's reverse sort keeps the order of equals.
        pairs.reverse();
        let mut start = 0;
        while start < pairs.len() {
            let equal = |pair: &&(Value, Value, Value)| pair.0 == pairs[start].0;
            let end = start + pairs[start..].iter().take_while(equal).count();
            pairs[start..end].reverse();
            start = end;
        }
    }
    Ok(pairs
        .into_iter()
        .map(|(_, key, value)| Value::from(Tuple::from([key, value])))
        .collect())
}
