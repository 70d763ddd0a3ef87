//! `Fault`: why a call failed, in the one-line form that `schema/errors.capnp` fixes. Touches nothing but text. What a peer
//! sent is made harmless here: control characters out, length bounded.

use capnp::ErrorKind;
pub use schema::errors_capnp::Code;

/// The longest reason that is taken from a peer, in bytes; the rest is cut off.
pub(crate) const LONGEST_REASON: usize = 2048;
/// What capnp-rpc puts before a reason that crossed a connection.
const REMOTE: &str = "remote exception: ";

const NAMES: [(Code, &str); 13] = [
    (Code::Internal, "internal"),
    (Code::InvalidArgument, "invalidArgument"),
    (Code::NotFound, "notFound"),
    (Code::AlreadyExists, "alreadyExists"),
    (Code::PermissionDenied, "permissionDenied"),
    (Code::Exhausted, "exhausted"),
    (Code::Unavailable, "unavailable"),
    (Code::WrongState, "wrongState"),
    (Code::BadImage, "badImage"),
    (Code::Revoked, "revoked"),
    (Code::BadToken, "badToken"),
    (Code::Conflict, "conflict"),
    (Code::Overloaded, "overloaded"),
];

/// Why a call failed: `<code>: <tried>: <why>. <remedy>.`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What a program may act on.
    pub code: Code,
    /// What was tried, on what.
    pub tried: String,
    /// Why it failed.
    pub why: String,
    /// What to do about it; without a full stop. Empty if there is nothing to say.
    pub remedy: String,
}

impl Fault {
    /// A fault of these parts. No part needs a full stop at its end; one that is there is taken off.
    pub fn new(code: Code, tried: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Fault {
        let part = |text: String| text.trim_end_matches('.').to_owned();
        Fault { code, tried: tried.into(), why: part(why.into()), remedy: part(remedy.into()) }
    }

    /// Reads the reason of a failed call. One without a known code comes from the RPC layer, and is `unavailable` where the
    /// other side has gone, `exhausted` where it was overloaded, else `internal`. The code is exact; where `tried`, `why`
    /// and `remedy` part is a guess, but together they are the text that was sent.
    pub fn parse(error: &capnp::Error) -> Fault {
        let mut text = error.extra.as_str();
        while let Some(rest) = text.strip_prefix(REMOTE) {
            text = rest;
        }
        let text = harmless(text);
        if let Some(fault) = Fault::read(&text) {
            return fault;
        }
        let (code, remedy) = match error.kind {
            ErrorKind::Disconnected => (Code::Unavailable, "Connect again, then ask again"),
            ErrorKind::Overloaded => (Code::Exhausted, "Ask again later"),
            ErrorKind::Unimplemented => (Code::Internal, "Use programs of one version of Volt"),
            _ => (Code::Internal, ""),
        };
        let why = match (&error.kind, text.is_empty()) {
            (ErrorKind::Failed | ErrorKind::Disconnected | ErrorKind::Overloaded | ErrorKind::Unimplemented, false) => {
                text
            }
            (kind, true) => kind.to_string(),
            (kind, false) => format!("{kind}: {text}"),
        };
        Fault::new(code, "call a service", why, remedy)
    }

    /// The same fault, with what the caller was doing in place of the RPC layer's words, if these are what it has.
    pub(crate) fn while_trying(mut self, tried: &str) -> Fault {
        if self.tried == "call a service" {
            tried.clone_into(&mut self.tried);
        }
        self
    }

    fn read(text: &str) -> Option<Fault> {
        let (name, rest) = text.split_once(':')?;
        let (code, _) = NAMES.iter().find(|(_, known)| *known == name)?;
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        let (tried, rest) = rest.split_once(": ").unwrap_or(("", rest));
        let rest = rest.strip_suffix('.').unwrap_or(rest);
        let (why, remedy) = rest.split_once(". ").filter(|(_, remedy)| !remedy.is_empty()).unwrap_or((rest, ""));
        Some(Fault { code: *code, tried: tried.into(), why: why.into(), remedy: remedy.into() })
    }
}

/// The name of a code as it begins a reason.
fn name(code: Code) -> &'static str {
    NAMES.iter().find(|(known, _)| *known == code).map_or("internal", |(_, name)| name)
}

/// An error and its causes, each after a colon: for a [`Fault`]'s `why`, and for the line that a program ends with. What an
/// error says last, the kernel's own word, is often all that helps; `to_string` on the error drops it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    harmless(&causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
}

/// How many of something, in words that fit: `1 port`, `2 ports`.
pub fn count<N: std::fmt::Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    let s = if number == N::from(1) { "" } else { "s" };
    format!("{number} {what}{s}")
}

/// A text that a caller has sent; `key` says which of those of its call. What is no text is the caller's fault.
///
/// # Errors
/// [`Code::InvalidArgument`].
pub fn text(tried: &str, key: &str, text: capnp::text::Reader<'_>) -> Result<String, Fault> {
    let not_text = |_| Fault::new(Code::InvalidArgument, tried, format!("{key} is not UTF-8"), "Send text");
    text.to_string().map_err(not_text)
}

/// One line of printable text of bounded length.
fn harmless(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= LONGEST_REASON {
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}.", name(self.code), self.tried, self.why)?;
        if !self.remedy.is_empty() {
            write!(f, " {}.", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for capnp::Error {
    fn from(fault: Fault) -> capnp::Error {
        let overloaded = matches!(fault.code, Code::Exhausted | Code::Overloaded);
        let kind = if overloaded { ErrorKind::Overloaded } else { ErrorKind::Failed };
        capnp::Error { kind, extra: harmless(&fault.to_string()) }
    }
}

impl From<&capnp::Error> for Fault {
    fn from(error: &capnp::Error) -> Fault {
        Fault::parse(error)
    }
}

impl From<capnp::Error> for Fault {
    fn from(error: capnp::Error) -> Fault {
        Fault::parse(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_of_something_is_not_said_in_the_plural() {
        for (number, words) in [(0, "0 ports"), (1, "1 port"), (2, "2 ports"), (1024, "1024 ports")] {
            assert_eq!(count(number, "port"), words);
        }
    }

    #[test]
    fn every_code_survives_the_way_through_an_exception() {
        for (code, name) in NAMES {
            let fault = Fault::new(code, "open kernel \"k\"", "there is none", "Import one");
            let error = capnp::Error::from(fault.clone());
            assert_eq!(error.extra, format!("{name}: open kernel \"k\": there is none. Import one."));
            assert_eq!(error.kind == ErrorKind::Overloaded, matches!(code, Code::Exhausted | Code::Overloaded));
            assert_eq!(Fault::parse(&error), fault);
        }
    }

    #[test]
    fn a_reason_that_crossed_two_vats_keeps_its_code() {
        let error = capnp::Error::failed(
            "remote exception: remote exception: notFound: get a: no such kernel. Import it.".into(),
        );
        assert_eq!(Fault::parse(&error), Fault::new(Code::NotFound, "get a", "no such kernel", "Import it"));
    }

    #[test]
    fn a_reason_of_the_rpc_layer_is_internal_and_a_disconnect_unavailable() {
        assert_eq!(Fault::parse(&capnp::Error::failed("Notfound: x: y. z.".into())).code, Code::Internal);
        assert_eq!(Fault::parse(&capnp::Error::disconnected("gone".into())).code, Code::Unavailable);
        assert_eq!(Fault::parse(&capnp::Error::overloaded("busy".into())).code, Code::Exhausted);
    }

    #[test]
    fn a_fault_without_a_remedy_ends_after_the_cause() {
        let fault = Fault::new(Code::Revoked, "use lease", "it was released.", "");
        assert_eq!(fault.to_string(), "revoked: use lease: it was released.");
    }

    #[test]
    fn chain_has_every_cause_once_in_one_bounded_line() {
        #[derive(Debug, thiserror::Error)]
        enum Link {
            #[error("cannot boot")]
            Outer(#[source] Box<Link>),
            #[error(transparent)]
            Seen(#[from] std::io::Error),
            #[error("a\nb\u{1b}[2J")]
            Hostile,
            #[error("{}", "x".repeat(1 << 20))]
            Long,
        }
        let kernel = Link::Seen(std::io::Error::from_raw_os_error(libc::ENOENT));
        let outer = |link| chain(&Link::Outer(Box::new(link)));
        assert_eq!(outer(kernel), "cannot boot: No such file or directory (os error 2)");
        assert_eq!(outer(Link::Hostile), "cannot boot: a b [2J");
        assert_eq!(outer(Link::Long).len(), LONGEST_REASON);
    }

    proptest! {
        #[test]
        fn whatever_a_peer_sends_becomes_one_bounded_printable_line(text in any::<String>()) {
            for reason in [text.clone(), format!("conflict:{text}"), format!("{}{text}", "x".repeat(3000))] {
                let shown = Fault::parse(&capnp::Error::failed(reason)).to_string();
                prop_assert!(!shown.chars().any(char::is_control));
                prop_assert!(shown.len() < LONGEST_REASON + 100);
            }
        }

        #[test]
        fn parsing_and_printing_again_gives_the_same_line(tried in "[a-z \":.]{1,30}", why in "[a-z \":]{1,30}", remedy in "[a-z \":]{0,30}") {
            let line = Fault::new(Code::Conflict, tried, why, remedy).to_string();
            prop_assert_eq!(Fault::parse(&capnp::Error::failed(line.clone())).to_string(), line);
        }
    }
}
