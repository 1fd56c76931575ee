//! Python's `'...' % values`, which minijinja doesn't have: a literal followed
//! by `%` is rewritten into a filter.

use minijinja::formatting::{format, FormatStyle};
use minijinja::value::ValueKind;
use minijinja::{Error, Value};

pub const FILTER: &str = "_percent_format";

/// `'format' % value`, a tuple being several values.
pub fn percent(template: &str, value: Value) -> Result<String, Error> {
    let values: Vec<Value> = match value.kind() {
        ValueKind::Seq if value.is_tuple() => value.try_iter()?.collect(),
        _ => vec![value],
    };
    format(FormatStyle::Printf, template, &values)
}

/// Rewrites `'...' % x` inside tags to `'...'|FILTER(x)`.
pub fn rewrite_percent(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let close = match rest.as_bytes().get(1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => {
                let end = rest.find("#}").map_or(rest.len(), |at| at + 2);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            _ => {
                out.push('{');
                rest = &rest[1..];
                continue;
            }
        };
        out.push_str(&rest[..2]);
        let (code, size) = rewrite_code(&rest[2..], Some(close));
        out.push_str(&code);
        rest = &rest[2 + size..];
    }
    out.push_str(rest);
    out
}

/// Rewrites code up to `close`; also how many bytes of it there are.
fn rewrite_code(code: &str, close: Option<&str>) -> (String, usize) {
    let mut out = String::new();
    let mut at = 0;
    let mut after_literal = false;
    while at < code.len() {
        let rest = &code[at..];
        if close.is_some_and(|close| rest.starts_with(close)) {
            break;
        }
        if after_literal && rest.starts_with('%') && !rest.starts_with("%}") {
            let blank = rest[1..].len() - rest[1..].trim_start().len();
            let operand = &rest[1 + blank..];
            let size = operand_size(operand);
            if size > 0 {
                let (inner, _) = rewrite_code(&operand[..size], None);
                out.push_str(&format!("|{FILTER}({inner})"));
                at += 1 + blank + size;
                after_literal = false;
                continue;
            }
        }
        let size = token_size(rest);
        let token = &rest[..size];
        if !token.chars().all(char::is_whitespace) {
            after_literal = token.starts_with(['\'', '"']);
        }
        out.push_str(token);
        at += size;
    }
    (out, at)
}

/// A string, a word or one character.
fn token_size(code: &str) -> usize {
    let Some(first) = code.chars().next() else {
        return 0;
    };
    if first == '\'' || first == '"' {
        return string_size(code, first);
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if is_word(first) {
        code.find(|c| !is_word(c)).unwrap_or(code.len())
    } else {
        first.len_utf8()
    }
}

fn string_size(code: &str, mark: char) -> usize {
    let mut escaped = false;
    for (at, character) in code.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if character == '\\' {
            escaped = true;
        } else if character == mark {
            return at + 1;
        }
    }
    code.len()
}

/// The operand: something with its attributes, items, calls and filters.
fn operand_size(code: &str) -> usize {
    let mut at = 0;
    if let Some(sign) = code.chars().next().filter(|c| matches!(c, '-' | '+')) {
        at += sign.len_utf8();
    }
    let first = primary_size(&code[at..]);
    if first == 0 {
        return 0;
    }
    at += first;
    loop {
        let rest = &code[at..];
        let blank = rest.len() - rest.trim_start().len();
        let next = &rest[blank..];
        let size = match next.chars().next() {
            Some('(' | '[') => primary_size(next),
            Some('.' | '|') => {
                let after = &next[1..];
                let blank = after.len() - after.trim_start().len();
                match primary_size(&after[blank..]) {
                    0 => 0,
                    name => 1 + blank + name,
                }
            }
            _ => 0,
        };
        if size == 0 {
            return at;
        }
        at += blank + size;
    }
}

/// A word, a string or a bracketed group.
fn primary_size(code: &str) -> usize {
    match code.chars().next() {
        Some('(' | '[' | '{') => group_size(code),
        Some('\'' | '"') => token_size(code),
        Some(c) if c.is_alphanumeric() || c == '_' => token_size(code),
        _ => 0,
    }
}

fn group_size(code: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < code.len() {
        let size = token_size(&code[at..]);
        match &code[at..at + size] {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += size;
        if depth == 0 {
            return at;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_literals_only() {
        let cases = [
            ("{{ '%s' % x }}", "{{ '%s'|_percent_format(x) }}"),
            (
                "{{ '%s-%d' % (a, b.c[0]) ~ 'x' }}",
                "{{ '%s-%d'|_percent_format((a, b.c[0])) ~ 'x' }}",
            ),
            (
                "{% if '%s' % x|upper == y %}%{% endif %}",
                "{% if '%s'|_percent_format(x|upper) == y %}%{% endif %}",
            ),
            ("{{ a % 2 }} 100 % {# '%' % x #}", "{{ a % 2 }} 100 % {# '%' % x #}"),
            ("{%- set a = 'b' %}", "{%- set a = 'b' %}"),
            (
                "{{ '%s' % ('%s' % x) }}",
                "{{ '%s'|_percent_format(('%s'|_percent_format(x))) }}",
            ),
            ("{{ '%s' % -x.y }}", "{{ '%s'|_percent_format(-x.y) }}"),
            ("{{ 'it\\'s %s' % x", "{{ 'it\\'s %s'|_percent_format(x)"),
        ];
        for (source, wanted) in cases {
            assert_eq!(rewrite_percent(source), wanted);
        }
    }
}
