//! rtnetlink (rtnetlink(7)) as far as netmgr needs it: many requests in one datagram, each answered, under one deadline.
//! Touches one socket. What the kernel sends is parsed without trust in any length.
//!
//! Written here rather than taken from a crate: several requests in one `send` are what keeps a port's creation at one round
//! trip, and the kernel carries out all of a datagram before it returns to a process that was killed meanwhile.

use std::{
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// The longest that one exchange with the kernel may take.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// What the kernel builds dump answers for: it takes the largest buffer it was ever read with, up to 32 KiB.
const BUFFER: usize = 32 * 1024;
const HEADER: usize = mem::size_of::<libc::nlmsghdr>();
/// libc lacks the types of a refusal's attributes (linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why an exchange as a whole failed.
#[derive(Debug)]
pub enum Failure {
    /// The socket failed.
    Io(io::Error),
    /// [`DEADLINE`] passed.
    Deadline,
    /// The kernel sent something that is no answer.
    Malformed(&'static str),
}

/// The kernel's "no" to one request, with its own words where it has any.
#[derive(Debug)]
pub struct Refusal {
    /// `errno`.
    pub errno: i32,
    /// From the extended acknowledgement; mostly empty.
    pub text: String,
}

/// What the kernel said to one request: the message it answered with, from the family's header on (`None` for a plain
/// acknowledgement), or its refusal.
pub type Answer = Result<Option<Vec<u8>>, Refusal>;

/// Requests to be sent as one datagram.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Batch {
    /// Adds a request: type, `NLM_F_*` flags beside `NLM_F_REQUEST` and `NLM_F_ACK`, the family's header, attributes.
    pub fn add(
        &mut self,
        kind: u16,
        flags: i32,
        header: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Batch {
        let start = self.bytes.len();
        self.bytes.extend([0; HEADER]);
        self.bytes.extend(header);
        attributes(&mut Attributes(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let number = self.count;
        self.count += 1;
        // The sequence number becomes the exchange's first plus this one when it is sent; the port number stays 0.
        let fields = length
            .to_ne_bytes()
            .into_iter()
            .chain(kind.to_ne_bytes())
            .chain(flags.to_ne_bytes())
            .chain(number.to_ne_bytes());
        for (to, from) in self.bytes.iter_mut().skip(start).zip(fields) {
            *to = from;
        }
        self
    }
}

/// Appends attributes to a request, each padded to four bytes.
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// An attribute with these bytes. Longer ones than a length field holds do not occur: names and addresses are checked.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.framed(kind, |inner| inner.0.extend(value))
    }

    /// A text with its terminating NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.framed(kind, |inner| {
            inner.0.extend(value.as_bytes());
            inner.0.push(0);
        })
    }

    /// A number in the machine's byte order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// An attribute that holds attributes.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.framed(kind | libc::NLA_F_NESTED as u16, fill)
    }

    fn framed(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(&mut Attributes(self.0));
        let length = (self.0.len() - start) as u16;
        for (to, from) in self.0.iter_mut().skip(start).zip(length.to_ne_bytes()) {
            *to = from;
        }
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// The attributes in `bytes`, type and value each; ends at the first one that does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The text of an attribute, up to its NUL; empty where it is not UTF-8.
pub fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    value.get(..end).and_then(|text| str::from_utf8(text).ok()).unwrap_or_default()
}

/// The number in the machine's byte order at an offset.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|number| u16::from_ne_bytes(*number))
}

/// A socket to the kernel's network configuration. It stays with the network namespace in which it was opened.
pub struct Socket {
    fd: OwnedFd,
    /// Number of the current exchange's first request, and of the next one's: late answers to an earlier one do not match.
    first: u32,
    next: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens the socket, in phase 1: later no socket can be made.
    pub fn open() -> io::Result<Socket> {
        // No protocol is protocol 0: NETLINK_ROUTE.
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        for side in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&fd, side, Some(DEADLINE))?;
        }
        // Extended texts; acknowledgements without a copy of the request; dumps that mind their filter. The first two are
        // from Linux 4.12, the last from 4.20: without it more is sent than asked for, so the filter is applied here as well.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            enable(&fd, option)
                .or_else(|error| if error.raw_os_error() == Some(libc::ENOPROTOOPT) { Ok(()) } else { Err(error) })?;
        }
        net::bind(&fd, &net::netlink::SocketAddrNetlink::new(0, 0))?;
        Ok(Socket { fd, first: 0, next: 1, buffer: vec![0; BUFFER] })
    }

    /// The socket's descriptor, for the sandbox to keep.
    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Sends all requests of a batch at once, and waits for the answer to each, in order. A refused one does not keep the
    /// kernel from carrying out the next.
    pub fn exchange(&mut self, mut batch: Batch) -> Result<Vec<Answer>, Failure> {
        let mut answers: Vec<Answer> = Vec::new();
        let mut pending = None;
        self.send(&mut batch)?;
        self.receive(batch.count, |kind, body| {
            if kind == libc::NLMSG_ERROR as u16 {
                let answer = match refusal(body)? {
                    Some(refusal) => Err(refusal),
                    None => Ok(pending.take()),
                };
                pending = None;
                answers.push(answer);
                return Ok(true);
            }
            pending = Some(body.to_vec());
            Ok(false)
        })?;
        Ok(answers)
    }

    /// Asks for a whole table, and gives `each` every message of it.
    pub fn dump(
        &mut self,
        kind: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
        mut each: impl FnMut(&[u8]),
    ) -> Result<Result<(), Refusal>, Failure> {
        let mut batch = Batch::default();
        batch.add(kind, libc::NLM_F_DUMP, header, fill);
        self.send(&mut batch)?;
        let mut refused = None;
        self.receive(1, |kind, body| {
            if kind == libc::NLMSG_ERROR as u16 || kind == libc::NLMSG_DONE as u16 {
                refused = refusal(body)?;
                return Ok(true);
            }
            each(body);
            Ok(false)
        })?;
        Ok(refused.map_or(Ok(()), Err))
    }

    fn send(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        self.first = self.next;
        self.next = self.first.wrapping_add(batch.count);
        let mut at = 0;
        while let Some(length) = u32_at(&batch.bytes, at) {
            let number = u32_at(&batch.bytes, at + 8).unwrap_or_default().wrapping_add(self.first);
            for (to, from) in batch.bytes.iter_mut().skip(at + 8).zip(number.to_ne_bytes()) {
                *to = from;
            }
            at += length as usize;
        }
        let sent = rustix::io::retry_on_intr(|| net::send(&self.fd, &batch.bytes, SendFlags::empty()));
        match sent {
            Ok(length) if length == batch.bytes.len() => Ok(()),
            Ok(_) => Err(Failure::Malformed("the kernel took a part of a datagram")),
            Err(rustix::io::Errno::AGAIN) => Err(Failure::Deadline),
            Err(error) => Err(Failure::Io(error.into())),
        }
    }

    /// Reads messages of the current exchange until `each` has said for `count` of them that they end an answer.
    fn receive(
        &mut self,
        count: u32,
        mut each: impl FnMut(u16, &[u8]) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let end = Instant::now() + DEADLINE;
        let mut ended = 0;
        while ended < count {
            if Instant::now() >= end {
                return Err(Failure::Deadline);
            }
            let (_, length, sender) =
                rustix::io::retry_on_intr(|| net::recvfrom(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC)).map_err(
                    |error| match error {
                        rustix::io::Errno::AGAIN => Failure::Deadline,
                        error => Failure::Io(error.into()),
                    },
                )?;
            // Any process may send to a netlink socket; only the kernel has port 0.
            let from_kernel = sender
                .and_then(|sender| net::netlink::SocketAddrNetlink::try_from(sender).ok())
                .is_some_and(|sender| sender.pid() == 0);
            if !from_kernel {
                continue;
            }
            let mut rest = self
                .buffer
                .get(..length)
                .ok_or(Failure::Malformed("a message longer than any the kernel should send"))?;
            while !rest.is_empty() {
                let (Some(length), Some(kind), Some(number)) = (u32_at(rest, 0), u16_at(rest, 4), u32_at(rest, 8))
                else {
                    return Err(Failure::Malformed("a message without a whole header"));
                };
                let body =
                    rest.get(HEADER..length as usize).ok_or(Failure::Malformed("a message with a wrong length"))?;
                let ours = number.wrapping_sub(self.first) < count;
                if ours && kind != libc::NLMSG_NOOP as u16 && each(kind, body)? {
                    ended += 1;
                }
                rest = rest.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// Reads an acknowledgement or the end of a dump: a negative `errno` or 0, then (with `NETLINK_CAP_ACK`) the refused
/// request's header, then attributes.
fn refusal(body: &[u8]) -> Result<Option<Refusal>, Failure> {
    let code = u32_at(body, 0).ok_or(Failure::Malformed("an acknowledgement without a result"))? as i32;
    if code == 0 {
        return Ok(None);
    }
    let said = body.get(4 + HEADER..).and_then(|rest| attributes(rest).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG));
    Ok(Some(Refusal {
        errno: code.wrapping_neg(),
        text: said.map(|(_, said)| text(said).to_owned()).unwrap_or_default(),
    }))
}

fn enable(fd: &OwnedFd, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length are those of a live integer, which the kernel reads and does not keep.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            mem::size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_what_was_written() {
        let mut bytes = Vec::new();
        Attributes(&mut bytes).text(3, "volt0").u32(4, 1500).nested(18, |inner| {
            inner.text(1, "bridge");
        });
        assert_eq!(bytes.len() % 4, 0);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read.len(), 3);
        assert_eq!((read[0].0, text(read[0].1)), (3, "volt0"));
        assert_eq!((read[1].0, u32_at(read[1].1, 0)), (4, Some(1500)));
        assert_eq!(
            attributes(read[2].1).map(|(kind, value)| (kind, text(value).to_owned())).collect::<Vec<_>>(),
            [(1, "bridge".to_owned())]
        );
    }

    #[test]
    fn attributes_with_lengths_that_lie_end_the_list() {
        for bytes in [&[][..], &[1], &[0, 0, 1, 0], &[3, 0, 1, 0], &[9, 0, 1, 0, 1, 2, 3, 4], &[255, 255, 1, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        // The last attribute's padding may be missing.
        assert_eq!(attributes(&[5, 0, 1, 0, 7]).count(), 1);
    }

    #[test]
    fn refusal_carries_errno_and_the_kernels_words() {
        assert!(refusal(&[0; 20]).unwrap().is_none());
        let mut body = (-libc::EBUSY).to_ne_bytes().to_vec();
        body.extend([0; HEADER]);
        Attributes(&mut body).text(NLMSGERR_ATTR_MSG, "in use");
        let refused = refusal(&body).unwrap().unwrap();
        assert_eq!((refused.errno, refused.text.as_str()), (libc::EBUSY, "in use"));
        assert!(matches!(refusal(&[0; 3]), Err(Failure::Malformed(_))));
        assert_eq!(refusal(&i32::MIN.to_ne_bytes()).unwrap().unwrap().errno, i32::MIN);
    }

    #[test]
    fn each_request_of_a_batch_gets_its_own_answer_in_order() {
        let mut socket = Socket::open().unwrap();
        for _ in 0..3 {
            let mut batch = Batch::default();
            let named = |name: &str| {
                let name = name.to_owned();
                move |attributes: &mut Attributes<'_>| {
                    attributes.text(libc::IFLA_IFNAME, &name);
                }
            };
            batch.add(libc::RTM_GETLINK, 0, &[0; 16], named("lo")).add(
                libc::RTM_GETLINK,
                0,
                &[0; 16],
                named("no-such-link"),
            );
            batch.add(libc::RTM_GETLINK, 0, &[0; 16], named("lo"));
            let answers = socket.exchange(batch).unwrap();
            assert_eq!(answers.len(), 3);
            assert!(answers[0].as_ref().unwrap().is_some());
            assert_eq!(answers[1].as_ref().unwrap_err().errno, libc::ENODEV);
            assert!(answers[2].as_ref().unwrap().is_some());
        }
    }

    #[test]
    fn dump_gives_every_link() {
        let mut names = Vec::new();
        Socket::open()
            .unwrap()
            .dump(
                libc::RTM_GETLINK,
                &[0; 16],
                |_| (),
                |body| {
                    names.extend(
                        attributes(&body[16..])
                            .filter(|(kind, _)| *kind == libc::IFLA_IFNAME)
                            .map(|(_, name)| text(name).to_owned()),
                    )
                },
            )
            .unwrap()
            .unwrap();
        assert!(names.iter().any(|name| name == "lo"), "{names:?}");
    }

    #[test]
    fn exchange_without_an_answer_ends_by_its_deadline() {
        let mut socket = Socket::open().unwrap();
        sockopt::set_socket_timeout(&socket.fd, sockopt::Timeout::Recv, Some(Duration::from_millis(20))).unwrap();
        assert!(matches!(socket.receive(1, |_, _| Ok(true)), Err(Failure::Deadline)));
    }

    #[test]
    fn answer_that_another_process_forged_is_not_heard() {
        let mut socket = Socket::open().unwrap();
        sockopt::set_socket_timeout(&socket.fd, sockopt::Timeout::Recv, Some(Duration::from_millis(20))).unwrap();
        let own: net::netlink::SocketAddrNetlink = net::getsockname(&socket.fd).unwrap().try_into().unwrap();
        let mut forged = Batch::default();
        forged.add(libc::NLMSG_ERROR as u16, 0, &[0; 20], |_| ());
        let liar = Socket::open().unwrap();
        let sent = net::sendto(
            &liar.fd,
            &forged.bytes,
            SendFlags::empty(),
            &net::netlink::SocketAddrNetlink::new(own.pid(), 0),
        );
        if sent == Err(rustix::io::Errno::PERM) {
            println!("skipped: only root may send to another process's netlink socket");
            return;
        }
        sent.unwrap();
        assert!(matches!(socket.receive(1, |_, _| Ok(true)), Err(Failure::Deadline)));
    }
}
