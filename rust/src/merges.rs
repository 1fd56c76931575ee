//! Byte-pair merges: as files list them, or derived from a vocabulary.

use std::collections::HashMap;

pub type Merge = (String, String);

/// Cutting a piece takes time in the square of its length.
const MAX_PIECE_BYTES: usize = 1024;

/// "left right"; the space that separates them is never the first byte, so a
/// left part that is a space itself stays whole.
pub fn parse(lines: &[&str]) -> Result<Vec<Merge>, String> {
    let split = |(index, line): (usize, &&str)| {
        line.char_indices()
            .skip(1)
            .find(|&(_, c)| c == ' ')
            .map(|(at, _)| (line[..at].to_owned(), line[at + 1..].to_owned()))
            .ok_or_else(|| format!("merge {index} ({line:?}) is not two tokens"))
    };
    lines.iter().enumerate().map(split).collect()
}

/// SentencePiece joins the pair whose union ranks highest. Ranked merges say
/// the same: one for each way to cut a piece into two others, best piece
/// first. `pieces`: those that may be joined, with their rank (higher is
/// better) and id, in the order of their ids.
pub fn from_ranks(pieces: &[(&str, f32, u32)]) -> Vec<Merge> {
    struct Candidate<'a> {
        left: &'a str,
        right: &'a str,
        rank: f32,
        left_chars: usize,
        right_chars: usize,
    }
    let ids: HashMap<&str, u32> = pieces.iter().map(|&(piece, _, id)| (piece, id)).collect();
    let mut candidates = Vec::new();
    for &(piece, rank, _) in pieces {
        if piece.len() > MAX_PIECE_BYTES {
            continue;
        }
        let first = candidates.len();
        let length = piece.chars().count();
        for (left_chars, (at, _)) in piece.char_indices().enumerate().skip(1) {
            let (left, right) = piece.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                candidates.push(Candidate {
                    left,
                    right,
                    rank,
                    left_chars,
                    right_chars: length - left_chars,
                });
            }
        }
        candidates[first..].sort_by_key(|c| (ids[c.left], ids[c.right]));
    }
    candidates.sort_by(|a, b| {
        b.rank
            .total_cmp(&a.rank)
            .then(b.left_chars.cmp(&a.left_chars))
            .then(b.right_chars.cmp(&a.right_chars))
    });
    let owned = |c: &Candidate| (c.left.to_owned(), c.right.to_owned());
    candidates.iter().map(owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_spaces_inside() {
        assert_eq!(
            parse(&["a b", "  c"]).unwrap(),
            [("a".into(), "b".into()), (" ".into(), "c".into())]
        );
        assert!(parse(&["ab"]).is_err());
        assert!(parse(&[""]).is_err());
    }

    #[test]
    fn best_piece_first() {
        let pieces = [("a", -9.0, 0), ("b", -9.0, 1), ("ab", -2.0, 2), ("ba", -1.0, 3)];
        assert_eq!(
            from_ranks(&pieces),
            [("b".into(), "a".into()), ("a".into(), "b".into())]
        );
    }
}
