//! Netlink (netlink(7)) as far as netmgr needs it: many requests in one datagram, answered under one deadline. Touches one
//! socket. Headers are the `rtnetlink` crate's types, which check every length of what the kernel sends.
//!
//! Not that crate's `Handle`: it sends each request by itself, waits for each answer before the next, knows no deadline, and
//! takes answers from any sender. Several requests in one `send` keep a port's creation at one round trip, and the kernel
//! carries out all of a datagram before it returns to a process that was killed meanwhile.

use std::{
    borrow::Cow,
    io, iter,
    marker::PhantomData,
    mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
    time::{Duration, Instant},
};

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
        NetlinkPayload, NetlinkSerializable,
    },
    packet_route::RouteNetlinkMessage,
    sys,
};
use rustix::net::sockopt;

use crate::{attribute, message::Message};

/// The longest that one exchange with the kernel may take.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// What the kernel builds dump answers for: it takes the largest buffer it was ever read with, up to 32 KiB. What it says of one card with some hundred virtual
/// functions is longer.
const BUFFER: usize = 64 * 1024;
/// The most messages that are left of an exchange: its answers, or a list of some ten thousand interfaces.
const LEFT: usize = 4096;
/// NLM_F_CAPPED (linux/netlink.h): a refusal without what it refuses.
const CAPPED: u16 = 0x100;
/// Netlink-packet-core lacks the types of a refusal's attributes (linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The `errno` of the answer to a dump that does not show one state of things: something changed while the kernel made it
/// (`NLM_F_DUMP_INTR`). The kernel itself has no such answer.
pub const INTERRUPTED: i32 = libc::ESTALE;

/// Why an exchange as a whole failed.
#[derive(Debug)]
pub enum Failure {
    /// The socket failed.
    Io(io::Error),
    /// [`DEADLINE`] passed.
    Deadline,
    /// There is no answer, on a socket that somebody else has too.
    Unheard,
    /// The kernel sent something that is no answer.
    Malformed(Cow<'static, str>),
    /// More came than the socket holds, so that some of it was lost. What was asked for may have been done.
    Lost,
}

/// The kernel's "no" to one request, with its own words where it has any.
#[derive(Debug)]
pub struct Refusal {
    /// `errno`.
    pub errno: i32,
    /// From the extended acknowledgement; mostly empty.
    pub text: String,
}

/// What the kernel says in the end to one request.
pub type Answer = Result<(), Refusal>;

impl<Q> AsFd for Socket<Q> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a part of the kernel is asked, and how it answers.
pub trait Question: NetlinkSerializable {
    /// `NETLINK_*`.
    const PROTOCOL: isize;
    /// What it says.
    type Said: NetlinkDeserializable;
}

impl Question for RouteNetlinkMessage {
    const PROTOCOL: isize = sys::protocols::NETLINK_ROUTE;
    type Said = Message;
}

/// A request; which one of its exchange it is, it learns when it is sent.
pub type Request<Q = RouteNetlinkMessage> = NetlinkMessage<Q>;

/// Makes a request. `flags` are the `NLM_F_*` beside `NLM_F_REQUEST` and `NLM_F_ACK`.
pub fn request<Q>(message: Q, flags: u16) -> Request<Q> {
    let mut request = Request::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
    request.header.flags = flags | NLM_F_REQUEST | NLM_F_ACK;
    request
}

/// A socket to a part of the kernel. It stays with the network namespace in which it was opened.
pub struct Socket<Q = RouteNetlinkMessage> {
    socket: sys::Socket,
    asks: PhantomData<fn(Q)>,
    /// Number of the next exchange's first request: late answers to an earlier one do not match.
    next: u32,
    buffer: Vec<u8>,
    /// Whether the last exchange ended before all of its answers were heard.
    unheard: bool,
    /// Whether somebody else has it too: then nothing is waited for. The kernel has answered when it takes a request of rtnetlink's.
    handed: bool,
}

impl<Q: Question> Socket<Q> {
    /// Opens the socket, in phase 1: later no socket can be made.
    pub fn open() -> io::Result<Socket<Q>> {
        let mut socket = sys::Socket::new(Q::PROTOCOL)?;
        for side in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&socket, side, Some(DEADLINE))?;
        }
        // Extended texts; acknowledgements without a copy of the request; dumps that mind their filter. The first two are
        // from Linux 4.12, the last from 4.20: without it more is sent than asked for, so the filter is applied here as well.
        for set in [socket.set_ext_ack(true), socket.set_cap_ack(true), socket.set_netlink_get_strict_chk(true)] {
            set.or_else(|error| if error.raw_os_error() == Some(libc::ENOPROTOOPT) { Ok(()) } else { Err(error) })?;
        }
        socket.bind(&sys::SocketAddr::new(0, 0))?;
        Ok(Socket {
            socket,
            asks: PhantomData,
            next: 1,
            buffer: Vec::with_capacity(BUFFER),
            unheard: false,
            handed: false,
        })
    }

    /// One that somebody else has opened, in whatever namespace, and has still.
    pub fn handed(socket: OwnedFd) -> Socket<Q> {
        // SAFETY: the descriptor is this value's alone.
        let socket = unsafe { sys::Socket::from_raw_fd(socket.into_raw_fd()) };
        Socket { socket, asks: PhantomData, next: 1, buffer: Vec::with_capacity(BUFFER), unheard: false, handed: true }
    }

    /// Whether nothing waits to be read.
    pub fn is_idle(&self) -> bool {
        let read = self.socket.recv(&mut [0; 1].as_mut_slice(), libc::MSG_DONTWAIT | libc::MSG_TRUNC);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Lets requests of that many bytes be sent at once, in phase 1; the kernel's own limit, where it does not let that be raised.
    pub fn let_send(&self, bytes: usize) {
        let _ = sockopt::set_socket_send_buffer_size_force(&self.socket, bytes);
    }

    /// The socket's descriptor, for the sandbox to keep.
    pub fn fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Sends all requests at once, gives `each` what the kernel says, and then, in order, the answer to every request. A
    /// refused one does not keep the kernel from carrying out the next, unless that part of the kernel has it so.
    ///
    /// Who takes `NLM_F_ACK` from all requests but one hears of the first refusal, of whichever request, or that there was none.
    pub fn exchange(&mut self, requests: Vec<Request<Q>>, each: impl FnMut(Q::Said)) -> Result<Vec<Answer>, Failure> {
        if mem::replace(&mut self.unheard, true) {
            self.drain();
        }
        let first = self.next;
        let count = requests.len();
        let expected = requests.iter().filter(|request| request.header.flags & NLM_F_ACK != 0).count();
        let mut datagram = Vec::new();
        for mut request in requests {
            request.header.sequence_number = self.next;
            self.next = self.next.wrapping_add(1);
            request.finalize();
            let mut bytes = vec![0; request.buffer_len()];
            request.serialize(&mut bytes);
            datagram.extend(bytes);
        }
        let wait = if self.handed { libc::MSG_DONTWAIT } else { 0 };
        let sent = retried(|| self.socket.send(&datagram, wait)).map_err(|failure| self.unheard(failure))?;
        if sent != datagram.len() {
            return Err(Failure::Malformed("the kernel took a part of a datagram".into()));
        }
        let answers = self.receive(first, count, expected, each)?;
        self.unheard = expected < count && answers.iter().any(Result::is_err);
        Ok(answers)
    }

    /// What it means that nothing came.
    fn unheard(&self, failure: Failure) -> Failure {
        if self.handed && matches!(failure, Failure::Deadline) { Failure::Unheard } else { failure }
    }

    /// Takes what is left of an exchange that failed. What fills the socket keeps the kernel from answering at all, and a list that has not come
    /// to its end, from beginning another one.
    fn drain(&mut self) {
        for _ in 0..LEFT {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // That some was lost is known.
                _ => {}
            }
        }
    }

    /// Begins a list, and leaves it.
    #[cfg(test)]
    pub fn leave(&mut self, mut request: Request<Q>) {
        request.header.sequence_number = self.next;
        self.next += 1;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).unwrap();
    }

    /// Reads until there are `expected` answers to the `count` requests from number `first` on.
    fn receive(
        &mut self,
        first: u32,
        count: usize,
        expected: usize,
        mut each: impl FnMut(Q::Said),
    ) -> Result<Vec<Answer>, Failure> {
        let end = Instant::now() + DEADLINE;
        let (wait, most) = if self.handed { (libc::MSG_DONTWAIT, LEFT) } else { (0, usize::MAX) };
        let mut answers = Vec::new();
        let (mut interrupted, mut read) = (false, 0_usize);
        while answers.len() < expected {
            if Instant::now() >= end || read >= most {
                return Err(self.unheard(Failure::Deadline));
            }
            read = read.saturating_add(1);
            self.buffer.clear();
            let heard = retried(|| self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC | wait));
            let (length, sender) = heard.map_err(|failure| self.unheard(failure))?;
            // Any process may send to a netlink socket; only the kernel has port 0.
            if sender.port_number() != 0 {
                continue;
            }
            if length > self.buffer.len() {
                return Err(Failure::Malformed(
                    "a message longer than any the kernel should send, which is cut off".into(),
                ));
            }
            for message in messages(&self.buffer) {
                let (header, payload) = message?.into_parts();
                if header.sequence_number.wrapping_sub(first) as usize >= count {
                    continue;
                }
                // On any message of the dump: the first one behind the change, or the last.
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match payload {
                    NetlinkPayload::InnerMessage(said) => each(said),
                    // With `NETLINK_CAP_ACK` it repeats the request's header and no more; a stranger's socket may be without.
                    NetlinkPayload::Error(error) => {
                        let attributes = error.header.get(mem::size_of::<libc::nlmsghdr>()..);
                        let attributes =
                            attributes.ok_or(Failure::Malformed("an answer without its question's header".into()))?;
                        let attributes = if self.handed && header.flags & CAPPED == 0 { &[] } else { attributes };
                        answers.push(answer(error.raw_code(), attributes)?);
                    }
                    NetlinkPayload::Done(_) if mem::take(&mut interrupted) => {
                        answers.push(Err(Refusal { errno: INTERRUPTED, text: String::new() }));
                    }
                    NetlinkPayload::Done(done) => answers.push(answer(done.code, &done.extended_ack)?),
                    NetlinkPayload::Overrun(_) => return Err(Failure::Lost),
                    _ => {}
                }
            }
        }
        Ok(answers)
    }
}

/// The messages in a datagram; ends at the first one that is none.
pub(crate) fn messages<S: NetlinkDeserializable>(
    mut rest: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<S>, Failure>> {
    iter::from_fn(move || {
        let message = (!rest.is_empty()).then(|| NetlinkMessage::deserialize(rest))?;
        let length = message.as_ref().map_or(rest.len(), |message| message.header.length as usize);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message.map_err(|error| Failure::Malformed(error.to_string().into())))
    })
}

/// What an acknowledgement or the end of a dump means: 0 or a negative `errno`, and attributes.
pub(crate) fn answer(code: i32, attributes: &[u8]) -> Result<Answer, Failure> {
    let errno = match code {
        0 => return Ok(Ok(())),
        i32::MIN | 1.. => return Err(Failure::Malformed(format!("an answer with the error number {code}").into())),
        code => -code,
    };
    let mut text = String::new();
    for said in attribute::attributes(attributes) {
        match said {
            Ok(said) if said.kind() == NLMSGERR_ATTR_MSG => text = attribute::text(said.value()),
            Ok(_) => {}
            // That it refused, and why, is not in doubt.
            Err(malformed) => text = format!("with {malformed} in place of an explanation"),
        }
    }
    Ok(Err(Refusal { errno, text }))
}

/// Does it again where a signal came between.
fn retried<T>(mut attempt: impl FnMut() -> io::Result<T>) -> Result<T, Failure> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Failure::Deadline),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Err(Failure::Lost),
            result => return result.map_err(Failure::Io),
        }
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::{
        LinkBridge, LinkMessageBuilder, LinkUnspec,
        packet_core::{Emitable, ErrorMessage, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLMSG_ERROR, Nla},
        packet_route::{
            address::AddressMessage,
            link::{LinkAttribute, LinkMessage},
            route::RouteMessage,
        },
    };

    use super::*;
    use crate::{bridge, config::Config, instance::Instance, rtnl::Rtnl};

    fn serialized(mut request: Request) -> Vec<u8> {
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        bytes
    }

    fn look_at(name: &str) -> Request {
        request(RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name).build()), 0)
    }

    fn impatient() -> Socket {
        let socket = Socket::open().unwrap();
        sockopt::set_socket_timeout(&socket.socket, sockopt::Timeout::Recv, Some(Duration::from_millis(20))).unwrap();
        socket
    }

    #[test]
    fn messages_with_lengths_that_lie_end_the_datagram_with_an_error() {
        let whole = serialized(look_at("lo"));
        let two = [&whole[..], &whole].concat();
        assert_eq!(messages::<Message>(&two).filter(Result::is_ok).count(), 2);
        for length in [0, 1, 15, whole.len() + 1, u32::MAX as usize] {
            let mut bytes = two.clone();
            bytes[whole.len()..whole.len() + 4].copy_from_slice(&(length as u32).to_ne_bytes());
            bytes.truncate(2 * whole.len());
            let read: Vec<bool> = messages::<Message>(&bytes).map(|message| message.is_ok()).collect();
            assert_eq!(read, [true, false], "{length}");
        }
        for end in 1..whole.len() {
            assert!(
                messages::<Message>(&whole[..end]).all(|message| matches!(message, Err(Failure::Malformed(_)))),
                "{end}"
            );
        }
        assert_eq!(messages::<Message>(&[]).count(), 0);
    }

    /// Every byte of what the kernel really says about a bridge, its address and its routes, changed in turn.
    #[test]
    fn damaged_messages_of_the_kernel_are_read_without_a_panic() {
        if !testkit::user::is_root() {
            return testkit::skip!("making a network namespace takes root");
        }
        let test = || {
            testkit::namespace::network().unwrap();
            let config = Config::new("volt0", "10.42.0.1", 24, 1500).unwrap();
            let wanted = bridge::Wanted { config: &config, owner: &Instance::default() };
            bridge::define(&mut Rtnl::open().unwrap(), wanted, None).unwrap();
            for question in [
                RouteNetlinkMessage::GetLink(LinkMessage::default()),
                RouteNetlinkMessage::GetAddress(AddressMessage::default()),
                RouteNetlinkMessage::GetRoute(RouteMessage::default()),
            ] {
                let socket: Socket = Socket::open().unwrap();
                socket.socket.send(&serialized(request(question, NLM_F_DUMP)), 0).unwrap();
                let mut said = Vec::with_capacity(BUFFER);
                socket.socket.recv_from(&mut said, 0).unwrap();
                for at in 0..said.len() {
                    let was = said[at];
                    for byte in [0, 1, 3, 5, 0x7f, 0xff, was ^ 0x80, was.wrapping_add(1)] {
                        said[at] = byte;
                        messages::<Message>(&said).for_each(drop);
                    }
                    said[at] = was;
                }
                assert!(
                    messages::<Message>(&said)
                        .any(|message| !matches!(message.unwrap().payload, NetlinkPayload::Done(_)))
                );
            }
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn refusal_carries_errno_and_the_kernels_words() {
        let refused = |code, attributes: &[u8]| answer(code, attributes).unwrap().unwrap_err();
        assert!(answer(0, &[]).unwrap().is_ok());
        let words =
            LinkAttribute::Other(rtnetlink::packet_core::DefaultNla::new(NLMSGERR_ATTR_MSG, b"in use\0".into()));
        assert_eq!(words.value_len(), 7);
        let mut bytes = vec![0; words.buffer_len()];
        words.emit(&mut bytes);
        let said = refused(-libc::EBUSY, &bytes);
        assert_eq!((said.errno, said.text.as_str()), (libc::EBUSY, "in use"));
        assert_eq!(refused(-libc::EBUSY, &[]).text, "");
        assert_eq!(refused(-libc::EBUSY, &[5, 0, 1, 0, 0xff]).text, "\u{fffd}");
        // A length that lies hides the explanation, and not the refusal.
        let lie = refused(-libc::EBUSY, &[255, 0, 1, 0, b'x']);
        assert_eq!(lie.errno, libc::EBUSY);
        assert!(lie.text.contains("malformed attribute"), "{}", lie.text);
        // Numbers that no error has.
        for code in [1, i32::MAX, i32::MIN] {
            assert!(matches!(answer(code, &[]), Err(Failure::Malformed(_))), "{code}");
        }
    }

    #[test]
    fn message_with_a_malformed_attribute_is_an_error_that_says_which() {
        let mut link = serialized(look_at("lo"));
        link[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
        link[20] = 1;
        assert!(matches!(messages::<Message>(&link).next(), Some(Ok(_))));
        link.extend([5, 0, libc::IFLA_MTU as u8, 0, 1, 0, 0, 0]);
        let length = link.len() as u32;
        link[..4].copy_from_slice(&length.to_ne_bytes());
        let Some(Err(Failure::Malformed(why))) = messages::<Message>(&link).next() else { panic!("it was read") };
        assert!(why.contains("a malformed MTU"), "{why}");
    }

    #[test]
    fn answers_that_were_lost_are_said_to_be_and_the_next_exchange_is_not_taken_for_them() {
        let mut socket = Socket::open().unwrap();
        sockopt::set_socket_recv_buffer_size(&socket.socket, 8 << 10).unwrap();
        let questions = (0..64).map(|_| look_at("lo")).collect();
        assert!(matches!(socket.exchange(questions, |_| ()), Err(Failure::Lost)));
        let mut links = 0;
        // What is left of the lost ones is in front of it.
        let answers = socket.exchange(vec![look_at("lo")], |_| links += 1);
        assert!(matches!(answers.unwrap()[..], [Ok(())]));
        assert_eq!(links, 1);
    }

    #[test]
    fn each_request_of_a_batch_gets_its_own_answer_in_order() {
        let mut socket = Socket::open().unwrap();
        for _ in 0..3 {
            let mut links = Vec::new();
            let requests = ["lo", "no-such-link", "lo"].map(look_at).into();
            let answers = socket.exchange(requests, |said| links.push(said)).unwrap();
            assert_eq!(answers.len(), 3);
            assert!(answers[0].is_ok() && answers[2].is_ok());
            assert_eq!(answers[1].as_ref().unwrap_err().errno, libc::ENODEV);
            assert_eq!(links.len(), 2);
            assert!(links.iter().all(|said| matches!(said, Message::Link(link) if link.name == "lo")), "{links:?}");
        }
    }

    #[test]
    fn dump_gives_every_link() {
        let mut names = Vec::new();
        let dump = request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP);
        let answers = Socket::open().unwrap().exchange(vec![dump], |said| match said {
            Message::Link(link) => names.push(link.name),
            other => panic!("{other:?}"),
        });
        assert!(matches!(answers.unwrap()[..], [Ok(())]));
        assert!(names.iter().any(|name| name == "lo"), "{names:?}");
    }

    #[test]
    fn dump_during_which_something_changes_is_no_answer_and_the_next_one_is() {
        if !testkit::user::is_root() {
            return testkit::skip!("making a network namespace takes root");
        }
        let test = || {
            testkit::namespace::network().unwrap();
            let mut changer = Socket::open().unwrap();
            let bridge = |name: &str| LinkMessageBuilder::<LinkBridge>::new(name).build();
            let many = (0..200).map(|n| RouteNetlinkMessage::NewLink(bridge(&format!("d{n}"))));
            let many = many.map(|message| request(message, NLM_F_CREATE | NLM_F_EXCL)).collect();
            assert!(changer.exchange(many, |_| ()).unwrap().iter().all(Result::is_ok));

            let mut socket = Socket::open().unwrap();
            let dump = || request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP);
            let mut first = dump();
            first.header.sequence_number = socket.next;
            socket.socket.send(&serialized(first), 0).unwrap();
            // A part of the list. The kernel makes the others as they are read.
            socket.socket.recv_from(&mut Vec::with_capacity(BUFFER), 0).unwrap();
            let more = request(RouteNetlinkMessage::NewLink(bridge("more")), NLM_F_CREATE | NLM_F_EXCL);
            assert!(changer.exchange(vec![more], |_| ()).unwrap()[0].is_ok());
            let answers = socket.receive(socket.next, 1, 1, |_| ()).unwrap();
            assert_eq!(answers[0].as_ref().unwrap_err().errno, INTERRUPTED);

            socket.next += 1;
            let mut links = 0;
            let answers = socket.exchange(vec![dump()], |_| links += 1).unwrap();
            assert!(answers[0].is_ok());
            assert_eq!(links, 202, "and lo");
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn exchange_without_an_answer_ends_by_its_deadline() {
        assert!(matches!(impatient().receive(1, 1, 1, |_| ()), Err(Failure::Deadline)));
    }

    #[test]
    fn answer_that_another_process_forged_is_not_heard() {
        let mut socket = impatient();
        let mut own = sys::SocketAddr::new(0, 0);
        socket.socket.get_address(&mut own).unwrap();
        let mut forged: Request =
            NetlinkMessage::new(Default::default(), NetlinkPayload::Error(ErrorMessage::default()));
        forged.header.sequence_number = 1;
        let forged = serialized(forged);
        assert_eq!(u16::from_ne_bytes([forged[4], forged[5]]), NLMSG_ERROR);
        let liar: Socket = Socket::open().unwrap();
        match liar.socket.send_to(&forged, &own, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return testkit::skip!("only root may send to another process's netlink socket");
            }
            sent => assert_eq!(sent.unwrap(), forged.len()),
        }
        assert!(matches!(socket.receive(1, 1, 1, |_| ()), Err(Failure::Deadline)));
    }
}
