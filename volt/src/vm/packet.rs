//! What a supervisor and its launcher say to each other: a packet a question, a packet an answer, with a number that tells which
//! answer is to which question. Pure; descriptors go beside them. Not a Cap'n Proto message: a few
//! numbers and a list of texts, for a process that is to have as little in it as can be.

/// Bytes of the longest packet: a kernel's command line and as much again.
pub const LONGEST: usize = 16 << 10;

/// First byte of a question.
const START: u8 = b's';
const STATUS: u8 = b'w';
const FORGET: u8 = b'f';
/// First byte of an answer, behind the question's number.
const STARTED: u8 = b'd';
const ENDED: u8 = b'x';
const RUNS: u8 = b'r';
const REFUSED: u8 = b'e';

/// What a supervisor asks its launcher for.
#[derive(Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// To start a program: its place among those that a launcher starts, and its arguments. The packet has its descriptors.
    Start(u8, Vec<&'a str>),
    /// How the process of that number ended.
    Status(u32),
    /// To forget that process; not answered.
    Forget(u32),
}

/// What a launcher answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The program was executed, as the process of that number. The packet has its pidfd.
    Started(u32),
    /// How the process ended, as wait(2) has it.
    Ended(i32),
    /// It has not ended, or is none that the launcher started.
    Runs,
    /// Why it could not be started.
    Refused(&'a str),
}

impl<'a> Question<'a> {
    /// The packet.
    pub fn write(&self, number: u32) -> Vec<u8> {
        let (kind, body) = match self {
            Question::Start(place, args) => {
                (START, args.iter().fold(vec![*place], |body, arg| [&body, arg.as_bytes(), &[0]].concat()))
            }
            Question::Status(pid) => (STATUS, pid.to_le_bytes().to_vec()),
            Question::Forget(pid) => (FORGET, pid.to_le_bytes().to_vec()),
        };
        [&[kind][..], &number.to_le_bytes(), &body].concat()
    }

    /// The question in a packet and its number, if it is one.
    pub fn read(packet: &'a [u8]) -> Option<(u32, Question<'a>)> {
        let ([kind, number @ ..], body) = packet.split_first_chunk::<5>()?;
        let question = match *kind {
            START => {
                let (place, text) = body.split_first()?;
                let text = std::str::from_utf8(text).ok()?;
                // Each argument has its end, so that an empty one is one.
                let args = match text.strip_suffix('\0') {
                    Some(text) => text.split('\0').collect(),
                    None if text.is_empty() => Vec::new(),
                    None => return None,
                };
                Question::Start(*place, args)
            }
            STATUS => Question::Status(u32::from_le_bytes(body.try_into().ok()?)),
            FORGET => Question::Forget(u32::from_le_bytes(body.try_into().ok()?)),
            _ => return None,
        };
        Some((u32::from_le_bytes(*number), question))
    }
}

impl<'a> Answer<'a> {
    /// The packet. A reason that is too long is cut.
    pub fn write(&self, number: u32) -> Vec<u8> {
        let (kind, body) = match self {
            Answer::Started(pid) => (STARTED, pid.to_le_bytes().to_vec()),
            Answer::Ended(status) => (ENDED, status.to_le_bytes().to_vec()),
            Answer::Runs => (RUNS, Vec::new()),
            Answer::Refused(why) => {
                let end = why.floor_char_boundary(LONGEST - size_of_val(&number) - 1);
                (REFUSED, why.as_bytes().get(..end).unwrap_or_default().to_vec())
            }
        };
        [&number.to_le_bytes()[..], &[kind], &body].concat()
    }

    /// The answer in a packet and the number of its question, if it is one.
    pub fn read(packet: &'a [u8]) -> Option<(u32, Answer<'a>)> {
        let (number, rest) = packet.split_first_chunk::<4>()?;
        let (kind, body) = rest.split_first()?;
        let answer = match *kind {
            STARTED => Answer::Started(u32::from_le_bytes(body.try_into().ok()?)),
            ENDED => Answer::Ended(i32::from_le_bytes(body.try_into().ok()?)),
            RUNS if body.is_empty() => Answer::Runs,
            REFUSED => Answer::Refused(std::str::from_utf8(body).ok()?),
            _ => return None,
        };
        Some((u32::from_le_bytes(*number), answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn question_and_answer_come_out_as_they_went_in() {
        for args in [vec![], vec![""], vec!["", ""], vec!["--cmdline", "a \u{e9}=\"b\"", ""]] {
            for question in [Question::Start(2, args), Question::Status(7), Question::Forget(u32::MAX)] {
                assert_eq!(Question::read(&question.write(9)), Some((9, question)));
            }
        }
        for answer in [Answer::Started(1), Answer::Ended(-1), Answer::Runs, Answer::Refused(""), Answer::Refused("no")]
        {
            assert_eq!(Answer::read(&answer.write(u32::MAX)), Some((u32::MAX, answer)));
        }
    }

    #[test]
    fn reason_is_cut_where_the_packet_is_full_and_stays_text() {
        let most = LONGEST - 5;
        for (length, left) in [(most - 1, most - 1), (most, most), (most + 1, most)] {
            assert_eq!(Answer::Refused(&"x".repeat(length)).write(1).len(), left + 5);
        }
        let packet = Answer::Refused(&"\u{e9}".repeat(LONGEST)).write(1);
        assert!(packet.len() <= LONGEST && matches!(Answer::read(&packet), Some((1, Answer::Refused(_)))));
    }

    #[test]
    fn what_is_cut_short_unknown_or_no_text_is_neither() {
        for none in [&b""[..], b"s", b"s\0\0\0", b"s\0\0\0\0", b"s\0\0\0\0\x01a", b"w\0\0\0\0\0\0\0", b"?\0\0\0\0"] {
            assert_eq!(Question::read(none), None, "{none:?}");
        }
        assert_eq!(Question::read(b"s\0\0\0\0\x01\xff\0"), None);
        for none in [&b""[..], b"\0\0\0\0", b"\0\0\0\0?", b"\0\0\0\0d\0", b"\0\0\0\0rx", b"\0\0\0\0e\xff"] {
            assert_eq!(Answer::read(none), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn any_packet_is_read_and_what_is_one_is_written_just_so(packet in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some((number, question)) = Question::read(&packet) {
                prop_assert_eq!(question.write(number), packet.clone());
            }
            if let Some((number, answer)) = Answer::read(&packet) {
                prop_assert_eq!(answer.write(number), packet);
            }
        }
    }
}
