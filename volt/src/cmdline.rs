//! The kernel's command line: words parted by spaces, double quotes that hold words together, and `--`, behind which nothing is
//! the kernel's any more but an argument of init (lib/cmdline.c `next_arg`, kernel/params.c `parse_args`).

use std::ops::Range;

/// Puts `words` where the kernel reads them, behind what it reads already.
pub fn with(cmdline: &str, words: &[String]) -> String {
    if words.is_empty() {
        return cmdline.to_owned();
    }
    let (kernels, inits) = cmdline.split_at(end(cmdline));
    let parts = [kernels.trim_end_matches(' ')].into_iter().chain(words.iter().map(String::as_str)).chain([inits]);
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether the kernel is told an address by it: `ip=`, and the older name of the same.
pub fn has_address(cmdline: &str) -> bool {
    let own =
        |word: &str| ["ip", "nfsaddrs"].into_iter().any(|name| word.split_once('=').is_some_and(|(n, _)| n == name));
    let end = end(cmdline);
    let mut words = words(cmdline).take_while(|word| word.start < end);
    words.any(|word| cmdline.get(word).is_some_and(|word| own(unquoted(word))))
}

/// Whether each double quote has its second one. Behind an open one there is no next word.
pub fn is_closed(cmdline: &str) -> bool {
    cmdline.bytes().filter(|byte| *byte == b'"').count() % 2 == 0
}

/// Where the kernel's words end.
fn end(cmdline: &str) -> usize {
    let mark = |word: &Range<usize>| cmdline.get(word.clone()).is_some_and(|word| unquoted(word) == "--");
    words(cmdline).find(mark).map_or(cmdline.len(), |word| word.start)
}

/// A word as the kernel compares it: without quotes around the whole.
fn unquoted(word: &str) -> &str {
    word.strip_prefix('"').map_or(word, |rest| rest.strip_suffix('"').unwrap_or(rest))
}

/// Where each word is. Parted by what the kernel takes for a space; only `' '` gets past the check of a configuration.
fn words(cmdline: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut quoted = false;
    let mut start = None;
    let mut places = cmdline.bytes().map(Some).chain([None]).enumerate();
    std::iter::from_fn(move || {
        for (place, byte) in places.by_ref() {
            match byte {
                Some(b' ') if !quoted => {}
                None => {}
                Some(byte) => {
                    quoted ^= byte == b'"';
                    start.get_or_insert(place);
                    continue;
                }
            }
            if let Some(start) = start.take() {
                return Some(start..place);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn added(cmdline: &str) -> String {
        with(cmdline, &["ip=1".into(), "ip=2".into()])
    }

    #[test]
    fn words_go_before_the_end_mark_and_behind_everything_else() {
        for (before, after) in [
            ("", "ip=1 ip=2"),
            ("quiet", "quiet ip=1 ip=2"),
            ("quiet -- single", "quiet ip=1 ip=2 -- single"),
            ("quiet  --  a  b", "quiet ip=1 ip=2 --  a  b"),
            ("-- single -- more", "ip=1 ip=2 -- single -- more"),
            ("quiet --", "quiet ip=1 ip=2 --"),
            // No marks: in quotes beside other text, with a value, as part of a word.
            ("a=\"b -- c\" d", "a=\"b -- c\" d ip=1 ip=2"),
            ("--=1 --a a-- ---", "--=1 --a a-- --- ip=1 ip=2"),
            ("\"-- a\"", "\"-- a\" ip=1 ip=2"),
            // The kernel takes the quotes around a word away before it compares.
            ("a \"--\" b", "a ip=1 ip=2 \"--\" b"),
            ("caf\u{e9} -- \u{e9}", "caf\u{e9} ip=1 ip=2 -- \u{e9}"),
        ] {
            assert_eq!(added(before), after);
        }
        assert_eq!(with("quiet -- x", &[]), "quiet -- x");
    }

    #[test]
    fn address_of_the_user_s_own_counts_where_the_kernel_reads_it() {
        for own in ["ip=dhcp", "quiet ip=10.0.0.1", "ip=", "a nfsaddrs=x -- b", "\"ip=a b\""] {
            assert!(has_address(own), "{own}");
        }
        for none in ["", "quiet -- ip=dhcp", "ip", "xip=1", "IP=1", "a=\"ip=1\"", "a=\"b ip=1 c\"", "ipv6.disable=1"] {
            assert!(!has_address(none), "{none}");
        }
    }

    #[test]
    fn quote_without_its_second_one_is_seen() {
        assert!(is_closed("") && is_closed("a=\"b c\" d=\"\""));
        assert!(!is_closed("\"") && !is_closed("a=\"b c\" \"d"));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_what_is_added_is_read_by_the_kernel(cmdline in "[a\" =\u{e9}-]{0,40}") {
            prop_assume!(is_closed(&cmdline));
            let text = with(&cmdline, &["ip=1".into()]);
            let list = |text: &str| words(text).map(|word| text[word].to_owned()).collect::<Vec<_>>();
            let mut left = list(&text);
            let place = left.iter().rposition(|word| word == "ip=1").unwrap();
            prop_assert!(text[..end(&text)].ends_with("ip=1 ") || text[..end(&text)].ends_with("ip=1"));
            left.remove(place);
            prop_assert_eq!(left, list(&cmdline));
        }
    }
}
