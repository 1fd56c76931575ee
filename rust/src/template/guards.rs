//! Puts filters of `weight` around the operands whose depth or length
//! minijinja doesn't know when it compares (`==`, `<`, `in`, ...), joins (`~`),
//! looks up (`x[...]`, `{...: }`), concatenates (`+`) and repeats (`*`).

use super::rewrite::{is_word, token_size};
use super::weight::{SHORT, WEIGH, WEIGH_ITEMS};

/// Weakest first; what binds stronger than `*` is part of an operand.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    Blank,
    Separator,
    Compare,
    In,
    Add,
    Subtract,
    Concat,
    Times,
    Divide,
    Operand,
}

struct Piece {
    class: Class,
    text: String,
}

/// `tag` is the name of the statement, none in `{{ }}`.
pub fn guard(code: &str, tag: Option<&str>) -> String {
    const NO_EXPRESSION: [&str; 6] = ["block", "extends", "from", "import", "include", "raw"];
    if tag.is_some_and(|tag| NO_EXPRESSION.contains(&tag) || tag.starts_with("end")) {
        return code.to_owned();
    }
    // Signs at the ends control whitespace.
    let start = usize::from(code.starts_with(['-', '+']));
    let end = code.len() - usize::from(code.len() > start && code.ends_with(['-', '+']));
    let mut reader = Reader {
        code: &code[start..end],
        at: 0,
        statement: tag,
    };
    let (pieces, _) = reader.read(false);
    format!("{}{}{}", &code[..start], combine(&pieces, Place::Other), &code[end..])
}

/// What a bracket holds.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Subscript,
    Dict,
    /// Arguments of `loop.changed()`, which compares.
    Compared,
    Other,
}

struct Reader<'a> {
    code: &'a str,
    at: usize,
    /// Its name.
    statement: Option<&'a str>,
}

impl<'a> Reader<'a> {
    /// Pieces up to the bracket that closes if `nested`, and that bracket.
    fn read(&mut self, nested: bool) -> (Vec<Piece>, &'a str) {
        let is_loop = !nested && self.statement == Some("for");
        let mut first_word = !nested && self.statement.is_some();
        let mut targets = is_loop;
        let mut pieces: Vec<Piece> = Vec::new();
        // Whether an operand has just ended, a name must follow ("." and "|"),
        // or a test's name ("is").
        let (mut operand, mut name, mut test) = (false, false, false);
        while self.at < self.code.len() {
            let rest = &self.code[self.at..];
            let size = operator_size(rest);
            let token = &rest[..size];
            self.at += size;
            if nested && matches!(token, ")" | "]" | "}") {
                return (pieces, token);
            }
            let mut text = token.to_owned();
            let class = match token {
                _ if token.trim().is_empty() => Class::Blank,
                "(" | "[" | "{" => {
                    let place = match token {
                        "{" => Place::Dict,
                        "[" if operand => Place::Subscript,
                        "(" if pieces.last().is_some_and(|last| last.text == "changed") => {
                            Place::Compared
                        }
                        _ => Place::Other,
                    };
                    let (inner, end) = self.read(true);
                    text = format!("{token}{}{end}", combine(&inner, place));
                    Class::Operand
                }
                _ if token.starts_with(is_word) => {
                    let first = std::mem::take(&mut first_word);
                    match token {
                        _ if first || targets => Class::Separator,
                        _ if name || test => Class::Operand,
                        "in" => Class::In,
                        "not" if operand => {
                            let blank = self.blank_before_in();
                            text.push_str(&blank);
                            self.at += blank.len();
                            Class::In
                        }
                        "not" | "and" | "or" | "if" | "else" => Class::Separator,
                        "recursive" if is_loop => Class::Separator,
                        _ => Class::Operand,
                    }
                }
                "==" | "!=" | "<=" | ">=" | "<" | ">" => Class::Compare,
                "~" => Class::Concat,
                "+" if operand => Class::Add,
                "-" if operand => Class::Subtract,
                "*" if operand => Class::Times,
                "/" | "//" | "%" => Class::Divide,
                "," | ":" | "=" => Class::Separator,
                _ => Class::Operand,
            };
            targets &= token != "in";
            if class != Class::Blank {
                let is_operand = class == Class::Operand;
                test = is_operand && !name && matches!(token, "is" | "not");
                name = matches!(token, "." | "|");
                let sign = name || matches!(token, "-" | "+" | "*" | "**");
                operand = is_operand && !sign && !test;
            }
            pieces.push(Piece { class, text });
        }
        (pieces, "")
    }

    /// After `not`: blanks and `in`.
    fn blank_before_in(&self) -> String {
        let rest = &self.code[self.at..];
        let word = rest.trim_start();
        let size = token_size(word);
        match &word[..size] {
            "in" => rest[..rest.len() - word.len() + size].to_owned(),
            _ => String::new(),
        }
    }
}

fn operator_size(code: &str) -> usize {
    const LONG: [&str; 6] = ["==", "!=", "<=", ">=", "//", "**"];
    match LONG.iter().any(|operator| code.starts_with(operator)) {
        true => 2,
        false => token_size(code),
    }
}

fn text_of(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

fn combine(pieces: &[Piece], place: Place) -> String {
    let is_slice = || pieces.iter().any(|piece| piece.text == ":");
    let all = place == Place::Compared || (place == Place::Subscript && !is_slice());
    let mut out = String::new();
    let mut rest = pieces;
    while !rest.is_empty() {
        let size = rest
            .iter()
            .position(|piece| piece.class == Class::Separator)
            .unwrap_or(rest.len());
        let end = rest.get(size).map_or("", |piece| &piece.text);
        let text = comparison(&rest[..size]);
        out.push_str(&match all || (place == Place::Dict && end == ":") {
            true => wrap(&text, WEIGH),
            false => text,
        });
        out.push_str(end);
        rest = &rest[(size + 1).min(rest.len())..];
    }
    out
}

/// The operands between operators of these classes, and those operators.
fn split<'a>(pieces: &'a [Piece], classes: &[Class]) -> (Vec<&'a [Piece]>, Vec<&'a Piece>) {
    let is_operator = |piece: &Piece| classes.contains(&piece.class);
    (
        pieces.split(is_operator).collect(),
        pieces.iter().filter(|piece| is_operator(piece)).collect(),
    )
}

fn joined(operands: Vec<String>, operators: &[&Piece]) -> String {
    let mut out = String::new();
    for (index, operand) in operands.iter().enumerate() {
        out.push_str(operand);
        out.push_str(operators.get(index).map_or("", |piece| &piece.text));
    }
    out
}

fn comparison(pieces: &[Piece]) -> String {
    let (operands, operators) = split(pieces, &[Class::Compare, Class::In]);
    if operators.is_empty() {
        return sum(pieces);
    }
    let guarded = operands.iter().enumerate().map(|(index, operand)| {
        let container = index > 0 && operators[index - 1].class == Class::In;
        wrap(&sum(operand), if container { WEIGH_ITEMS } else { WEIGH })
    });
    joined(guarded.collect(), &operators)
}

fn sum(pieces: &[Piece]) -> String {
    let (operands, operators) = split(pieces, &[Class::Add, Class::Subtract]);
    // Lists are added to lists only.
    let plain: Vec<bool> = operands.iter().map(|operand| is_plain(&text_of(operand))).collect();
    let adds_lists = |left: usize| {
        operators.get(left).is_some_and(|piece| piece.class == Class::Add)
            && !plain[left]
            && !plain[left + 1]
    };
    let guarded = operands.iter().enumerate().map(|(index, operand)| {
        let text = concatenation(operand);
        match adds_lists(index) || (index > 0 && adds_lists(index - 1)) {
            true => wrap(&text, SHORT),
            false => text,
        }
    });
    joined(guarded.collect(), &operators)
}

fn concatenation(pieces: &[Piece]) -> String {
    let (operands, operators) = split(pieces, &[Class::Concat]);
    if operators.is_empty() {
        return product(pieces);
    }
    let guarded = operands.iter().map(|operand| wrap(&product(operand), WEIGH));
    joined(guarded.collect(), &operators)
}

fn product(pieces: &[Piece]) -> String {
    let text = text_of(pieces);
    match pieces.iter().any(|piece| piece.class == Class::Times) {
        true => wrap(&text, SHORT),
        false => text,
    }
}

fn wrap(text: &str, filter: &str) -> String {
    let core = text.trim();
    if core.is_empty() || is_plain(core) {
        return text.to_owned();
    }
    let lead = text.len() - text.trim_start().len();
    let (before, after) = (&text[..lead], &text[lead + core.len()..]);
    format!("{before}({core})|{filter}{after}")
}

/// A number or a string, as it stands in the source.
fn is_plain(text: &str) -> bool {
    let text = text.trim();
    let is_text = text.starts_with(['\'', '"']) && token_size(text) == text.len();
    let number = text.strip_prefix('-').unwrap_or(text);
    is_text || (!number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_operands() {
        let cases = [
            ("a == 'b'", "(a)|_weigh == 'b'"),
            ("- a ~ b.c[0]|f(x ~ 1) -", "- (a)|_weigh ~ (b.c[0]|f((x)|_weigh ~ 1))|_weigh -"),
            ("a+b*c < d", "((a)|_short+((b*c)|_short)|_short)|_weigh < (d)|_weigh"),
            ("a + 1 - -b", "a + 1 - -b"),
            ("x[i] + y[1:][-1]", "(x[(i)|_weigh])|_short + (y[1:][-1])|_short"),
            ("{k: v, 'a': [b == c]}", "{(k)|_weigh: v, 'a': [(b)|_weigh == (c)|_weigh]}"),
            (
                "not a in b and c not  in d if e is not none else f",
                "not (a)|_weigh in (b)|_weigh_items and (c)|_weigh not  in (d)|_weigh_items \
                 if e is not none else f",
            ),
            ("x is in a or y.in == z|not", "x is in a or (y.in)|_weigh == (z|not)|_weigh"),
            ("f(*a, **b, c=d == e)", "f(*a, **b, c=(d)|_weigh == (e)|_weigh)"),
            ("loop.changed(a, 1)", "loop.changed((a)|_weigh, 1)"),
            ("2 ** n * m", "(2 ** n * m)|_short"),
        ];
        for (code, wanted) in cases {
            assert_eq!(guard(code, None), wanted);
        }
    }

    #[test]
    fn guards_statements() {
        let cases = [
            ("for", " for a, b in c if a in b recursive ", 
             " for a, b in c if (a)|_weigh in (b)|_weigh_items recursive "),
            ("if", "- if a == b -", "- if (a)|_weigh == (b)|_weigh -"),
            ("set", " set a.b, c = d ~ e ", " set a.b, c = (d)|_weigh ~ (e)|_weigh "),
            ("import", " import a ~ b ", " import a ~ b "),
            ("call", " call(x) f(a ~ b) ", " call(x) f((a)|_weigh ~ (b)|_weigh) "),
        ];
        for (tag, code, wanted) in cases {
            assert_eq!(guard(code, Some(tag)), wanted);
        }
    }
}
