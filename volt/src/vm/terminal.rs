//! The terminal that `volt run` was started on, as long as it is the guest's: every key is passed on as it is typed.
//!
//! Its modes are changed where it is ours, in the foreground, and nowhere else: in the background it is another job's. Whatever way
//! the VM ends in order, the modes are as they were. A job that is stopped (`kill -TSTP`; Ctrl-Z is the guest's) and continued
//! takes it again.

use std::io::IsTerminal;

use rustix::{
    process::Pid,
    termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcsetattr},
};

/// Its modes as they were found, and as the guest has them.
pub struct Terminal {
    found: Termios,
    raw: Termios,
    group: Pid,
}

impl Terminal {
    /// Takes it for the guest; `None` if standard input is none, or not ours.
    pub fn take() -> Option<Terminal> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let found = tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = found.clone();
        raw.make_raw();
        // What is said beside the console ends its lines with a line feed alone.
        raw.output_modes.set(OutputModes::OPOST, found.output_modes.contains(OutputModes::OPOST));
        let terminal = Terminal { found, raw, group: rustix::process::getpgrp() };
        terminal.set(&terminal.raw).then_some(terminal)
    }

    /// Takes it again, as a job that has been continued.
    pub fn resume(&self) {
        self.set(&self.raw);
    }

    /// Gives it back as it was.
    pub fn restore(&self) {
        self.set(&self.found);
    }

    /// Whether it is ours, and so could be set.
    fn set(&self, modes: &Termios) -> bool {
        let stdin = rustix::stdio::stdin();
        tcgetpgrp(stdin) == Ok(self.group) && tcsetattr(stdin, OptionalActions::Now, modes).is_ok()
    }
}
