//! Upper and lower case as Python's strings have them.

fn upper_first(c: char) -> String {
    // Of the letters with a title case of their own, only digraphs matter.
    match c {
        'ǆ' | 'Ǆ' | 'ǅ' => "ǅ".to_owned(),
        'ǉ' | 'Ǉ' | 'ǈ' => "ǈ".to_owned(),
        'ǌ' | 'Ǌ' | 'ǋ' => "ǋ".to_owned(),
        'ǳ' | 'Ǳ' | 'ǲ' => "ǲ".to_owned(),
        'ß' => "Ss".to_owned(),
        c => c.to_uppercase().collect(),
    }
}

/// Every word's first letter is upper case; words end at anything without
/// case.
pub fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut in_word = false;
    for c in s.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            out.push_str(&upper_first(c));
        }
        in_word = c.is_lowercase() || c.is_uppercase();
    }
    out
}

pub fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    match chars.next() {
        Some(first) => upper_first(first) + &chars.as_str().to_lowercase(),
        None => String::new(),
    }
}

pub fn swap_case(s: &str) -> String {
    s.chars()
        .flat_map(|c| -> Vec<char> {
            if c.is_uppercase() {
                c.to_lowercase().collect()
            } else {
                c.to_uppercase().collect()
            }
        })
        .collect()
}
