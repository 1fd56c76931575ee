//! What differs between Jinja2's and minijinja's reading of a template.

/// Line ends become "\n", and transformers' `{% generation %}`, which only
/// marks the assistant's text, becomes a block with a scope of its own.
pub fn prepare(source: &str) -> Result<String, String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = super::rewrite::rewrite(&source)?;
    Ok(replace_tags(&source))
}

fn replace_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        match renamed(&tag[2..tag.len() - 2]) {
            Some((open, name, close)) => {
                out.push_str(&format!("{{%{open} {name} {close}%}}"));
            }
            None => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn renamed(inner: &str) -> Option<(&str, &str, &str)> {
    let open = ["-", "+"].into_iter().find(|&sign| inner.starts_with(sign));
    let inner = open.map_or(inner, |sign| &inner[sign.len()..]);
    let close = ["-", "+"].into_iter().find(|&sign| inner.ends_with(sign));
    let inner = close.map_or(inner, |sign| &inner[..inner.len() - sign.len()]);
    let name = match inner.trim() {
        "generation" => "with",
        "endgeneration" => "endwith",
        _ => return None,
    };
    Some((open.unwrap_or(""), name, close.unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_becomes_a_scope() {
        assert_eq!(
            prepare("a{%- generation %}b\r\nc{% endgeneration -%}d{% if x %}").unwrap(),
            "a{%- with %}b\nc{% endwith -%}d{% if x %}"
        );
    }
}
