//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use capnp::{ErrorKind, capability::FromClientHook};
use capnp_rpc::{new_client, rpc_twoparty_capnp::Side};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};
use schema::{
    fd_lane_capnp as wire,
    kernel_store_capnp::{kernel, kernel_store},
};
use testkit::input::Input;

use crate::{
    Code, Error, Fault, Lane, Limits, Peer, Token, fault::LONGEST_REASON, lane::TOKEN_LENGTH, lane_socket::LaneSocket,
    rpc::RpcConnection,
};

/// What a peer gives as the reason of a failed call: it becomes one line of printable text of bounded length, and says the same when it is
/// passed on.
pub fn fault_text(data: &[u8]) {
    let Some((kind, reason)) = data.split_first() else { return };
    let kinds = [ErrorKind::Failed, ErrorKind::Disconnected, ErrorKind::Overloaded, ErrorKind::Unimplemented];
    let kind = kinds.get(usize::from(*kind)).copied().unwrap_or(ErrorKind::MessageEndsPrematurely(1, 2));
    let fault = Fault::parse(&capnp::Error { kind, extra: String::from_utf8_lossy(reason).into_owned() });
    let line = fault.to_string();
    assert!(!line.chars().any(char::is_control) && line.len() < LONGEST_REASON + 200, "{line:?}");
    let passed_on = capnp::Error::from(fault.clone());
    let overloaded = matches!(fault.code, Code::Exhausted | Code::Overloaded);
    assert_eq!(passed_on.kind == ErrorKind::Overloaded, overloaded);
    let again = Fault::parse(&passed_on);
    assert_eq!(again.code, fault.code);
    if line.len() <= LONGEST_REASON {
        assert_eq!(again.to_string(), line);
    }
}

/// A packet on the lane, as an input describes it.
struct Packet<'a> {
    bytes: &'a [u8],
    fds: usize,
}

impl<'a> Packet<'a> {
    /// How many descriptors and bytes, then the bytes.
    fn read(input: &mut Input<'a>) -> Packet<'a> {
        let [fds, len] = input.array();
        Packet { fds: usize::from(fds % 4), bytes: input.take(usize::from(len % 32)) }
    }

    fn send(&self, socket: &OwnedFd) {
        let null = null();
        let fds: Vec<BorrowedFd<'_>> = (0..self.fds).map(|_| null.as_fd()).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = [std::io::IoSlice::new(self.bytes)];
        rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL).expect("there is room");
    }
}

/// Packets that fit into a socket without anybody reading them.
const PACKETS: usize = 24;

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).expect("there are descriptors")
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").expect("it is there").into()
}

fn run(test: impl Future<Output = ()>) {
    crate::run(test).expect("there are descriptors");
}

/// A client of the lane sends packets, one of which may claim what was offered to it: it gets as many answers at most, each as the schema
/// says, each token once, and nothing waits in the end that it did not deposit.
pub fn lane_service(data: &[u8]) {
    run(async {
        let (peer, ours) = pair(SocketType::SEQPACKET);
        let mut input = Input::new(data);
        let (takes, us) = (input.byte().is_multiple_of(2), Peer::this_process());
        let lane = if takes { Lane::new() } else { Lane::new().without_deposits() };
        let offered = lane.offer(null(), us).expect("there is room");
        let claim = [&[wire::OP_CLAIM][..], offered.as_bytes()].concat();
        let mut asked = 0;
        while !input.is_empty() && asked < PACKETS {
            asked += 1;
            match input.byte() {
                0xff => Packet { bytes: &claim, fds: 0 }.send(&peer),
                _ => Packet::read(&mut input).send(&peer),
            }
        }
        rustix::net::shutdown(&peer, Shutdown::Write).expect("it is connected");
        let socket = LaneSocket::new(ours).expect("there are descriptors");
        let _why = socket.serve(lane.clone(), us).await;
        let (mut answers, mut claimed) = (0, 0);
        loop {
            let answer = match crate::lane_socket::receive_now(peer.as_fd(), true) {
                Ok(Ok(answer)) => answer,
                // Said once, before what was answered, where the service had not read all.
                Err(Errno::CONNRESET) => continue,
                _ => break,
            };
            answers += 1;
            match (answer.parts().expect("it is not empty"), &answer.fd) {
                ((wire::STATUS_OK, []), Some(_)) => claimed += 1,
                ((wire::STATUS_OK, token), None) if takes => {
                    assert_eq!(token.len(), TOKEN_LENGTH);
                    lane.redeem(token, us).expect("it was deposited");
                    assert_eq!(lane.redeem(token, us).expect_err("it was redeemed").code, Code::BadToken);
                }
                ((status, rest), None) => {
                    assert!([wire::STATUS_BAD_TOKEN, wire::STATUS_EXHAUSTED].contains(&status) && rest.is_empty());
                }
                _ => unreachable!("a descriptor with what is none"),
            }
        }
        assert!(answers <= asked && claimed <= 1);
        assert_eq!(lane.waiting(), 1 - claimed);
    });
}

/// A service answers a client of the lane with any packets: what is taken for an answer is exactly one.
pub fn lane_client(data: &[u8]) {
    run(async {
        let (peer, ours) = pair(SocketType::SEQPACKET);
        let mut input = Input::new(data);
        let mut packets = Vec::new();
        while !input.is_empty() && packets.len() < PACKETS {
            let packet = Packet::read(&mut input);
            packet.send(&peer);
            packets.push(packet);
        }
        rustix::net::shutdown(&peer, Shutdown::Write).expect("it is connected");
        let client = LaneSocket::new(ours).expect("there are descriptors");
        let token = Token::from_bytes(&[7; TOKEN_LENGTH]).expect("it is as long as a token");
        for (n, packet) in packets.iter().enumerate() {
            let said = packet.bytes.split_first().map(|(status, rest)| (*status, rest.len(), packet.fds));
            let (done, refused) = if n % 2 == 0 {
                let answer = client.deposit(null().as_fd()).await;
                (matches!(answer, Ok(Ok(_))), matches!(answer, Ok(Err(_))))
            } else {
                let answer = client.claim(&token).await;
                (matches!(answer, Ok(Ok(_))), matches!(answer, Ok(Err(_))))
            };
            let good = if n % 2 == 0 { (wire::STATUS_OK, TOKEN_LENGTH, 0) } else { (wire::STATUS_OK, 0, 1) };
            let no = [wire::STATUS_BAD_TOKEN, wire::STATUS_EXHAUSTED, wire::STATUS_TOO_MANY_LANES];
            assert_eq!(done, said == Some(good));
            assert_eq!(refused, no.iter().any(|status| said == Some((*status, 0, 0))));
            if !done && !refused {
                return;
            }
        }
        assert!(client.claim(&token).await.is_err());
    });
}

/// A kernel store with a kernel of every name.
struct Store;

struct Kernel;

impl kernel_store::Server for Store {
    async fn get(
        self: Rc<Self>,
        params: kernel_store::GetParams,
        mut results: kernel_store::GetResults,
    ) -> capnp::Result<()> {
        if params.get()?.get_ref()?.is_empty() {
            return Err(Fault::new(Code::NotFound, "get a kernel", "it has no name", "").into());
        }
        results.get().set_kernel(new_client(Kernel));
        Ok(())
    }
}

impl kernel::Server for Kernel {
    async fn info(self: Rc<Self>, _: kernel::InfoParams, mut results: kernel::InfoResults) -> capnp::Result<()> {
        results.get().init_info().set_size(7);
        Ok(())
    }
}

/// Limits that an input of a few kilobytes meets.
fn limits() -> Limits {
    Limits { message_words: 512, held_words: 1024, capabilities: 8, cancelled_calls: 4, ..Limits::default() }
}

/// Runs a connection over which the peer says `data` and then no more.
async fn converse(data: &[u8], side: Side) {
    let (peer, ours) = pair(SocketType::STREAM);
    let sent = rustix::net::send(&peer, data, SendFlags::NOSIGNAL).unwrap_or(0);
    assert_eq!(sent, data.len(), "there is room");
    rustix::net::shutdown(&peer, Shutdown::Write).expect("it is connected");
    let ended = match side {
        Side::Server => {
            let store: kernel_store::Client = new_client(Store);
            crate::serve::serve_socket(ours, limits(), store.client).await
        }
        Side::Client => {
            let mut link = RpcConnection::new(ours, side, limits(), None).expect("there are descriptors");
            let store = kernel_store::Client::new(link.bootstrap().expect("once").hook);
            let call = store.list_request().send();
            let (ended, answer) = futures::join!(link.drive(std::future::pending()), call.promise);
            // Whatever came, the call has its end.
            let _ = answer.map(|list| list.get().map(drop));
            ended
        }
    };
    assert!(!matches!(ended, Err(Error::Panicked)), "a peer has made the RPC system panic");
}

/// A client says anything to a service.
pub fn rpc_requests(data: &[u8]) {
    run(converse(data, Side::Server));
}

/// A service says anything to a client that waits for it.
pub fn rpc_answers(data: &[u8]) {
    run(converse(data, Side::Client));
}

#[cfg(test)]
mod tests {
    use testkit::corpus::replay;

    #[test]
    fn kept_reasons_of_failed_calls_break_no_promise() {
        replay("fault_text", super::fault_text);
    }

    #[test]
    fn kept_packets_to_a_lane_break_no_promise() {
        replay("lane_service", super::lane_service);
    }

    #[test]
    fn kept_packets_from_a_lane_break_no_promise() {
        replay("lane_client", super::lane_client);
    }

    #[test]
    fn kept_requests_break_no_promise() {
        replay("rpc_requests", super::rpc_requests);
    }

    #[test]
    fn kept_answers_break_no_promise() {
        replay("rpc_answers", super::rpc_answers);
    }
}
