//! Every message that a frontend could send to the disk's backend.

#[path = "../../device/tests/common/mod.rs"]
mod common;
mod disk;
#[path = "../../device/tests/common/messages.rs"]
mod messages;

use disk::PROGRAM;

#[test]
fn every_message_is_answered_or_ends_the_backend() {
    let begin = |theirs| {
        let image = tempfile::tempfile().unwrap();
        image.set_len(4096).unwrap();
        common::start(PROGRAM, &["--fd={}", "--blk-fd={}"], vec![theirs, image.into()])
    };
    messages::every_message_is_answered_or_ends_the_backend(begin, 1);
}
