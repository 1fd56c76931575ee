//! Tests (`x is ...`) that Jinja2 has and minijinja has not, or answers
//! otherwise.

use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

pub fn add_to(environment: &mut Environment<'static>) {
    environment.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined
        )
    });
    environment.add_test("iterable", |value: &Value| {
        value.is_undefined() || value.kind() == ValueKind::String || value.try_iter().is_ok_and(|_| !value.is_none())
    });
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    environment.add_test("callable", |value: &Value| {
        value.is_undefined() || value.kind() == ValueKind::Plain
    });
}
