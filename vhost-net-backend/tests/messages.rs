//! Every message that a frontend could send to the network's backend.

mod wire;

use testrig::{frontend::start, messages};
use wire::*;

#[test]
fn every_message_is_answered_or_ends_the_backend() {
    let wire = Wire::new(false);
    let begin = |theirs| {
        let tap = wire.tap.try_clone().unwrap();
        start(PROGRAM, &["--fd={}", "--tap-fd={}", "--mac", MAC], vec![theirs, tap])
    };
    messages::every_message_is_answered_or_ends_the_backend(begin, 2);
}
