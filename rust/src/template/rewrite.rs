//! Rewrites what Jinja2 has and minijinja's grammar has not:
//! `'...' % x` becomes a filter, a sign `+` goes, and escapes of strings that
//! minijinja reads otherwise become ones it reads alike. Operations whose cost
//! minijinja doesn't know get guards.

use super::format::FILTER;
use super::guards;

/// minijinja compiles an expression recursively, without a limit of its own.
const MAX_TOKENS: usize = 10_000;

/// The source with the code inside its tags rewritten.
pub fn rewrite(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let close = match rest.as_bytes().get(1) {
            Some(b'{') if !raw => "}}",
            Some(b'%') => "%}",
            Some(b'#') if !raw => {
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
        let tag = (close == "%}").then(|| tag_name(&rest[2..]));
        if let Some(tag) = tag {
            match tag {
                "endraw" => raw = false,
                _ if raw => {
                    out.push_str("{%");
                    rest = &rest[2..];
                    continue;
                }
                "raw" => raw = true,
                _ => {}
            }
        }
        out.push_str(&rest[..2]);
        if token_count(&rest[2..], close) > MAX_TOKENS {
            let line = source[..source.len() - rest.len()].matches('\n').count() + 1;
            return Err(format!(
                "has an expression of more than {MAX_TOKENS} parts in line {line}"
            ));
        }
        let (code, size) = rewrite_code(&rest[2..], Some(close));
        out.push_str(&guards::guard(&code, tag));
        rest = &rest[2 + size..];
    }
    out.push_str(rest);
    Ok(out)
}

fn token_count(code: &str, close: &str) -> usize {
    let mut at = 0;
    let mut count = 0;
    let mut depth = 0;
    while at < code.len() && count <= MAX_TOKENS {
        if depth == 0 && code[at..].starts_with(close) {
            break;
        }
        let size = token_size(&code[at..]);
        depth += nesting(&code[at..at + size]);
        count += usize::from(kind_of(&code[at..at + size]).is_some());
        at += size;
    }
    count
}

/// By how much a token opens or closes brackets; code ends outside all of them.
fn nesting(token: &str) -> i32 {
    match token {
        "(" | "[" | "{" => 1,
        ")" | "]" | "}" => -1,
        _ => 0,
    }
}

/// The first word of a tag.
fn tag_name(code: &str) -> &str {
    let code = code.strip_prefix(['-', '+']).unwrap_or(code).trim_start();
    let end = code
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(code.len());
    &code[..end]
}

/// What the token before was.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    Operator,
    Operand,
    Literal,
}

/// Rewrites code up to `close`; also how many bytes of it there are.
fn rewrite_code(code: &str, close: Option<&str>) -> (String, usize) {
    let mut out = String::new();
    let mut at = 0;
    let mut depth = 0;
    let mut before = Before::Nothing;
    while at < code.len() {
        let rest = &code[at..];
        if depth == 0 && close.is_some_and(|close| rest.starts_with(close)) {
            break;
        }
        if before == Before::Literal && rest.starts_with('%') && !rest.starts_with("%}") {
            let blank = rest[1..].len() - rest[1..].trim_start().len();
            let operand = &rest[1 + blank..];
            let size = operand_size(operand);
            if size > 0 {
                let (inner, _) = rewrite_code(&operand[..size], None);
                out.truncate(out.trim_end().len());
                out.push_str(&format!("|{FILTER}({inner})"));
                at += 1 + blank + size;
                before = Before::Operand;
                continue;
            }
        }
        let size = token_size(rest);
        let token = &rest[..size];
        at += size;
        depth += nesting(token);
        let kind = kind_of(token);
        // At the very start "+" controls whitespace, and so it does at the end.
        let is_sign = token == "+"
            && (before == Before::Operator || (before == Before::Nothing && at > 1))
            && !close.is_some_and(|close| code[at..].starts_with(close));
        if is_sign {
            continue;
        }
        match kind {
            Some(Before::Literal) => out.push_str(&rewrite_escapes(token)),
            _ => out.push_str(token),
        }
        before = kind.unwrap_or(before);
    }
    (out, at)
}

/// None for blanks.
fn kind_of(token: &str) -> Option<Before> {
    const WORD_OPERATORS: [&str; 12] = [
        "in", "not", "and", "or", "if", "else", "elif", "is", "set", "for", "recursive", "return",
    ];
    let first = token.chars().next()?;
    Some(match first {
        c if c.is_whitespace() => return None,
        '\'' | '"' => Before::Literal,
        ')' | ']' | '}' => Before::Operand,
        c if is_word(c) && WORD_OPERATORS.contains(&token) => Before::Operator,
        c if is_word(c) => Before::Operand,
        _ => Before::Operator,
    })
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A string, a word or one character.
pub fn token_size(code: &str) -> usize {
    let Some(first) = code.chars().next() else {
        return 0;
    };
    if first == '\'' || first == '"' {
        string_size(code, first)
    } else if is_word(first) {
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

fn rewrite_escapes(literal: &str) -> String {
    if !literal.contains('\\') {
        return literal.to_owned();
    }
    let mut out = String::with_capacity(literal.len());
    let mut rest = literal;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest[at + 1..];
        let Some(letter) = escape.chars().next() else {
            rest = &rest[at..];
            break;
        };
        let mut size = letter.len_utf8();
        match letter {
            '/' => out.push_str("\\\\/"),
            'a' => out.push_str("\\x07"),
            'v' => out.push_str("\\x0b"),
            '\n' => {}
            'U' => match long_escape(escape) {
                Some(character) => {
                    out.push(character);
                    size = 9;
                }
                None => out.push_str("\\U"),
            },
            _ => {
                out.push('\\');
                out.push(letter);
            }
        }
        rest = &escape[size..];
    }
    out.push_str(rest);
    out
}

/// `U0001F600`.
fn long_escape(escape: &str) -> Option<char> {
    let digits = escape.get(1..9)?;
    char::from_u32(u32::from_str_radix(digits, 16).ok()?)
}

/// The operand: something with its attributes, items, calls and filters.
fn operand_size(code: &str) -> usize {
    let mut at = usize::from(code.starts_with(['-', '+']));
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
        Some(c) if is_word(c) || c == '\'' || c == '"' => token_size(code),
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
    fn rewrites_what_differs_only() {
        let cases = [
            ("{{ '%s' % x }}", "{{ '%s'|_percent_format(x) }}"),
            (
                "{{ '%s-%d' % (a, b.c[0]) ~ 'x' }}",
                "{{ ('%s-%d'|_percent_format((a, b.c[0])))|_weigh ~ 'x' }}",
            ),
            (
                "{% if '%s' % x|upper == y %}%{% endif %}",
                "{% if ('%s'|_percent_format(x|upper))|_weigh == (y)|_weigh %}%{% endif %}",
            ),
            ("{{ a % 2 }} 100 % {# '%' % x #}", "{{ a % 2 }} 100 % {# '%' % x #}"),
            ("{%- set a = 'b' %}", "{%- set a = 'b' %}"),
            ("{{ {'a': {'b': +1}} }}", "{{ {'a': {'b': 1}} }}"),
            (
                "{{ '%s' % ('%s' % x) }}",
                "{{ '%s'|_percent_format(('%s'|_percent_format(x))) }}",
            ),
            ("{{ '%s' % -x.y }}", "{{ '%s'|_percent_format(-x.y) }}"),
            ("{{ 'it\\'s %s' % x", "{{ 'it\\'s %s'|_percent_format(x)"),
            ("{{ +5 + +x }}{{ a + b }}", "{{ 5 + x }}{{ (a)|_short + (b)|_short }}"),
            ("{%+ if x +%}{{+ 5 }}", "{%+ if x +%}{{+ 5 }}"),
            (
                r"{{ '\/\n\a\U0001F600\\' }}\/",
                "{{ '\\\\/\\n\\x07😀\\\\' }}\\/",
            ),
            (
                "{% raw %}{{ '%s' % x }}{% endraw %}{{ +1 }}",
                "{% raw %}{{ '%s' % x }}{% endraw %}{{ 1 }}",
            ),
        ];
        for (source, wanted) in cases {
            assert_eq!(rewrite(source).unwrap(), wanted);
        }
    }

    #[test]
    fn refuses_endless_expressions() {
        let source = format!("\n{{{{ 1{} }}}}", "+1".repeat(MAX_TOKENS));
        assert!(rewrite(&source).unwrap_err().contains("line 2"));
        assert!(rewrite(&"{{ 1 }}".repeat(MAX_TOKENS)).is_ok());
    }
}
