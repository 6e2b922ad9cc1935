//! "Did you mean …?"

/// The candidate nearest to a word, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(2);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        // Half of a short word changed is another word.
        .filter(|&(distance, candidate)| distance <= limit && distance * 2 <= candidate.chars().count())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean "x"?`, or nothing.
pub fn suggestion<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map_or_else(String::new, |candidate| format!("; did you mean {candidate:?}?"))
}

/// Levenshtein's: insertions, deletions and substitutions.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, &to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typos_and_not_strangers() {
        let keys = ["bucket", "name", "address", "region"];
        assert_eq!(nearest("buckets", keys), Some("bucket"));
        assert_eq!(nearest("adress", keys), Some("address"));
        assert_eq!(nearest("nmae", keys), Some("name"));
        assert_eq!(nearest("voters", keys), None);
        assert_eq!(nearest("eu", ["us", "ap"]), None);
        assert_eq!(nearest("foo", ["log", "region"]), None);
        assert_eq!(nearest("eu-11", ["us-1", "eu-1", "ap-1"]), Some("eu-1"));
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
