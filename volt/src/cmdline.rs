//! The kernel's command line: words parted by spaces, double quotes that hold words together, and `--`, behind which nothing is
//! the kernel's any more but an argument of init (lib/cmdline.c `next_arg`, kernel/params.c `parse_args`).
//!
//! To the kernel it is bytes. One of those that it takes for a space (lib/ctype.c) is 0xa0, with which a letter can end: U+00E0 does.

use std::ops::Range;

/// Puts `words` where the kernel reads them, behind what it reads already.
pub fn with(cmdline: &str, words: &[String]) -> String {
    if words.is_empty() {
        return cmdline.to_owned();
    }
    // Between two characters, as the mark that begins there is ASCII.
    let (kernels, inits) = cmdline.split_at(end(cmdline));
    let parts = [kernels.trim_end_matches(' ')].into_iter().chain(words.iter().map(String::as_str)).chain([inits]);
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether the kernel is told an address by it: `ip=`, and the older name of the same.
pub fn has_address(cmdline: &str) -> bool {
    let own = |word: &[u8]| [&b"ip="[..], b"nfsaddrs="].into_iter().any(|name| word.starts_with(name));
    let end = end(cmdline);
    words(cmdline).take_while(|word| word.start < end).any(|word| own(unquoted(cmdline, word)))
}

/// Whether it is one line of text, and no control character is in it.
pub fn is_line(cmdline: &str) -> bool {
    cmdline.bytes().all(|byte| byte >= b' ' && byte != 0x7f)
}

/// Whether each double quote has its second one. Behind an open one there is no next word.
pub fn is_closed(cmdline: &str) -> bool {
    cmdline.bytes().filter(|byte| *byte == b'"').count() % 2 == 0
}

/// Where the kernel's words end.
fn end(cmdline: &str) -> usize {
    let mark = |word: &Range<usize>| unquoted(cmdline, word.clone()) == b"--";
    words(cmdline).find(mark).map_or(cmdline.len(), |word| word.start)
}

/// A word as the kernel compares it: without quotes around the whole.
fn unquoted(cmdline: &str, word: Range<usize>) -> &[u8] {
    let word = cmdline.as_bytes().get(word).unwrap_or_default();
    word.strip_prefix(b"\"").map_or(word, |rest| rest.strip_suffix(b"\"").unwrap_or(rest))
}

/// Where each word is. Parted by what the kernel takes for a space, as far as a line has it.
fn words(cmdline: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut quoted = false;
    let mut start = None;
    let mut places = cmdline.bytes().map(Some).chain([None]).enumerate();
    std::iter::from_fn(move || {
        for (place, byte) in places.by_ref() {
            match byte {
                Some(b' ' | 0xa0) if !quoted => {}
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
            // 0xa0 is a space where a letter ends with it, too, or goes on behind it.
            ("l\u{e0}-- single", "l\u{e0} ip=1 ip=2 -- single"),
            ("\u{20000}\u{a0}\"--\" x", "\u{20000}\u{a0} ip=1 ip=2 \"--\" x"),
            ("a=\"\u{e0}-- b\" c", "a=\"\u{e0}-- b\" c ip=1 ip=2"),
        ] {
            assert_eq!(added(before), after);
        }
        assert_eq!(with("quiet -- x", &[]), "quiet -- x");
    }

    #[test]
    fn address_of_the_user_s_own_counts_where_the_kernel_reads_it() {
        for own in ["ip=dhcp", "quiet ip=10.0.0.1", "ip=", "a nfsaddrs=x -- b", "\"ip=a b\"", "\u{a0}ip=1"] {
            assert!(has_address(own), "{own}");
        }
        for none in [
            "",
            "quiet -- ip=dhcp",
            "ip",
            "xip=1",
            "IP=1",
            "a=\"ip=1\"",
            "a=\"b ip=1 c\"",
            "ipv6.disable=1",
            "\u{e0}-- ip=1",
        ] {
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
        fn nothing_is_lost_and_what_is_added_is_read_by_the_kernel(cmdline in "[a\" =\u{e9}\u{e0}-]{0,40}") {
            prop_assume!(is_closed(&cmdline));
            let text = with(&cmdline, &["ip=1".into()]);
            let list = |text: &str| words(text).map(|word| text.as_bytes()[word].to_owned()).collect::<Vec<_>>();
            let mut left = list(&text);
            let place = left.iter().rposition(|word| word == b"ip=1").unwrap();
            prop_assert!(text[..end(&text)].ends_with("ip=1 ") || text[..end(&text)].ends_with("ip=1"));
            left.remove(place);
            prop_assert_eq!(left, list(&cmdline));
        }
    }
}
