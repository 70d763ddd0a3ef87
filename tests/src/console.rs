//! A VMM as a child process whose standard input and output are the guest's console. Every line is
//! kept with the moment it came; every wait has a deadline; dropping it kills and reaps the process.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

/// A running VMM.
pub struct Console {
    /// What messages call it.
    pub label: String,
    /// When it was started, by [`now`], read just before the fork.
    pub started: Duration,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<(Duration, String)>,
    /// Everything that came so far, the VMM's own messages included.
    pub transcript: Vec<String>,
}

impl Console {
    /// Starts `command`. Its environment and working directory are the caller's to set.
    pub fn start(label: &str, mut command: Command) -> Result<Console> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = now();
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("Cannot start {program}"))?;
        let (sender, lines) = channel();
        if let Some(output) = child.stdout.take() {
            forward(label, "", output, sender.clone());
        }
        if let Some(errors) = child.stderr.take() {
            forward(label, "! ", errors, sender);
        }
        let input = child.stdin.take();
        Ok(Console { label: label.to_owned(), started, child, input, lines, transcript: Vec::new() })
    }

    /// Waits for a line that contains `text`, and returns the line and when it came.
    pub fn expect(&mut self, text: &str, patience: Duration) -> Result<(Duration, String)> {
        self.scan(text, None, patience)
    }

    /// Gives the guest a command and waits for its answer.
    pub fn command(&mut self, command: &str, patience: Duration) -> Result<()> {
        self.send(command)?;
        self.answer(command, patience)
    }

    /// Gives the guest a command.
    pub fn send(&mut self, command: &str) -> Result<()> {
        let input = self.input.as_mut().context("The console's input was closed")?;
        writeln!(input, "{command}").with_context(|| format!("{}: cannot write to the console", self.label))
    }

    /// Waits for the answer to a command that was given before.
    pub fn answer(&mut self, command: &str, patience: Duration) -> Result<()> {
        let failed = format!("lab: {command} failed");
        self.scan(&format!("lab: {command} ok"), Some(&failed), patience).map(drop)
    }

    fn scan(&mut self, text: &str, bad: Option<&str>, patience: Duration) -> Result<(Duration, String)> {
        let end = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((when, line)) => {
                    self.transcript.push(line.clone());
                    if line.contains(text) {
                        return Ok((when, line));
                    }
                    if bad.is_some_and(|bad| line.contains(bad)) {
                        bail!("{}: the guest said {line:?}", self.label);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: no {text:?} within {} s; {}", self.label, patience.as_secs(), self.last())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{}: ended with {status} before {text:?}; {}", self.label, self.last())
                }
            }
        }
    }

    /// The next line, or `None` once the VMM has closed its output.
    pub fn line(&mut self, patience: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(patience) {
            Ok((_, line)) => {
                self.transcript.push(line.clone());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{}: silent for {} s; {}", self.label, patience.as_secs(), self.last())
            }
        }
    }

    /// Sends a signal to the VMM's process.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).with_context(|| format!("{}: cannot send {signal:?}", self.label))
    }

    /// The VMM's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the process to end, and takes in what it still had to say.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > end {
                return Err(anyhow!("{}: still runs after {} s; {}", self.label, patience.as_secs(), self.last()));
            }
            thread::sleep(Duration::from_millis(20));
        };
        // A process that outlives the VMM may hold the pipes open: do not wait for their end.
        while let Ok((_, line)) = self.lines.recv_timeout(Duration::from_millis(200)) {
            self.transcript.push(line);
        }
        Ok(status)
    }

    /// The last lines, for an error's text.
    pub fn last(&self) -> String {
        let from = self.transcript.len().saturating_sub(3);
        format!("last lines: {:?}", self.transcript.get(from..).unwrap_or(&[]))
    }
}

/// CLOCK_MONOTONIC, which the kernel's tracer can use as well.
pub fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends each line on, and copies it to this process's output, which is the log of the run.
fn forward(label: &str, mark: &str, from: impl Read + Send + 'static, to: Sender<(Duration, String)>) {
    let prefix = format!("[{label}] {mark}");
    let mark = mark.to_owned();
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let when = now();
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            println!("{prefix}{text}");
            let _ = to.send((when, mark.clone() + &text));
            line.clear();
        }
    });
}
