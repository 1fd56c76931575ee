//! Filters that Jinja2 has and minijinja has not, or answers otherwise.

use minijinja::{Environment, Error, State, Value};

use super::python;

pub fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("string", |value: &Value| python::str(value));
    environment.add_filter("center", center);
    environment.add_filter("wordcount", |value: &Value| -> Result<usize, Error> {
        let text = python::str(value)?;
        let mut words = 0;
        let mut inside = false;
        for c in text.chars() {
            let word = c.is_alphanumeric() || c == '_';
            words += usize::from(word && !inside);
            inside = word;
        }
        Ok(words)
    });
}

fn center(state: &State, value: &Value, width: Option<i64>) -> Result<String, Error> {
    let text = python::str(value)?;
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
