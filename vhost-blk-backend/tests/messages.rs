//! Every message that a frontend could send to the disk's backend.

mod disk;

use disk::PROGRAM;
use testrig::{frontend::start, messages};

#[test]
fn every_message_is_answered_or_ends_the_backend() {
    let begin = |theirs| {
        let image = tempfile::tempfile().unwrap();
        image.set_len(4096).unwrap();
        start(PROGRAM, &["--fd={}", "--blk-fd={}"], vec![theirs, image.into()])
    };
    messages::every_message_is_answered_or_ends_the_backend(begin, 1);
}
