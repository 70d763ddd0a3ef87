//! What the test command counts as skipped: `skipped: NAME: REASON`, which a test prints that cannot be made on this machine, and passes.

/// Says why the test that this is called in cannot be made here, as with `format!`. The test then returns, as by `return skip!("it takes root")`,
/// or goes on where only a part of it cannot be made.
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => {
        $crate::skip::say(&format!($($why)+))
    };
}

/// The line for the test on this thread.
pub fn say(why: &str) {
    println!("{}", line(std::thread::current().name(), why));
}

/// A thread that a test has started has no name: the section that it prints in has.
fn line(test: Option<&str>, why: &str) -> String {
    format!("skipped: {}: {why}", test.unwrap_or("this test"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_names_the_test_and_the_reason() {
        let test = std::thread::current().name().map(str::to_owned);
        let expected = "skipped: skip::tests::a_line_names_the_test_and_the_reason: it takes 2";
        assert_eq!(super::line(test.as_deref(), &format!("it takes {}", 1 + 1)), expected);
        assert_eq!(super::line(None, "why: so"), "skipped: this test: why: so");
    }
}
