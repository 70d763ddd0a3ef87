//! The fd lane's table: file descriptors that wait for whoever holds their token (`schema/fd_lane.capnp`). Holds descriptors;
//! never reads or writes through one.

use std::{cell::RefCell, collections::HashMap, os::fd::OwnedFd, rc::Rc, time::Duration};

use schema::fd_lane_capnp as wire;
use tokio::{sync::Notify, time::Instant};

use crate::{Code, Fault, Peer};

pub(crate) const TOKEN_LENGTH: usize = wire::TOKEN_LENGTH as usize;

/// What redeems one file descriptor, once: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; TOKEN_LENGTH]);

impl Token {
    /// A new token from the kernel's random number generator.
    fn random() -> Result<Token, Fault> {
        let refused = |_| Fault::new(Code::Internal, "make a token", "the kernel gave no random bytes", "");
        crate::random().map(Token).map_err(refused)
    }

    /// A token from bytes that a peer sent.
    pub fn from_bytes(bytes: &[u8]) -> Result<Token, Fault> {
        bytes.try_into().map(Token).map_err(|_| bad_token())
    }

    /// The bytes, as they go into an `FdToken` and over the lane.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads the token of an RPC message.
    pub fn read(token: wire::fd_token::Reader<'_>) -> Result<Token, Fault> {
        Token::from_bytes(token.get_bytes().map_err(|_| bad_token())?)
    }

    /// Writes the token into an RPC message.
    pub fn write(&self, mut token: wire::fd_token::Builder<'_>) {
        token.set_bytes(&self.0);
    }
}

/// A token is a secret while it is good: it is not shown.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

pub(crate) fn bad_token() -> Fault {
    Fault::new(
        Code::BadToken,
        "redeem a descriptor's token",
        "it is unknown, was used, has expired, goes the other way, or was made for another user",
        "Get a new one, and use it within 30 s",
    )
}

pub(crate) fn too_many_tokens() -> Fault {
    Fault::new(
        Code::Overloaded,
        "keep a descriptor on the fd lane",
        "as many as may wait already for this user, or this process of it",
        "Redeem some, or ask again in 30 s",
    )
}

/// Which way a descriptor goes: its token is good in that direction only, so that nobody takes over the lane what another client left
/// for the service, nor gives the service as its own what it was only to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// Deposited; an RPC method redeems it.
    Service,
    /// Offered by an RPC method; claimed over the lane.
    Client,
}

struct Waiting {
    fd: OwnedFd,
    uid: u32,
    pid: i32,
    connection: u64,
    to: To,
    until: Instant,
}

struct Table {
    waiting: HashMap<Token, Waiting>,
    lifetime: Duration,
    per_user: usize,
    takes_deposits: bool,
}

impl Table {
    fn expire(&mut self) {
        let now = Instant::now();
        self.waiting.retain(|_, entry| entry.until > now);
    }

    /// Every VM that root runs is a process of root's: none of them may take the place of all, so root's processes count one by one.
    /// A process of another pid namespace (0) cannot be told from others there.
    fn is_full_for(&self, peer: Peer) -> bool {
        let of_user = || self.waiting.values().filter(|entry| entry.uid == peer.uid);
        let of_process = of_user().filter(|entry| entry.pid == peer.pid).count();
        let per_process = usize::from(wire::MAX_TOKENS_PER_PROCESS).min(self.per_user);
        (peer.pid != 0 && of_process >= per_process)
            || ((peer.uid != 0 || peer.pid == 0) && of_user().count() >= self.per_user)
    }
}

/// The table of waiting descriptors of one vat, shared by its RPC objects and its lane connections.
#[derive(Clone)]
pub struct Lane {
    table: Rc<RefCell<Table>>,
    added: Rc<Notify>,
}

impl Default for Lane {
    fn default() -> Lane {
        Lane::new()
    }
}

impl Lane {
    /// An empty table with the limits of `schema/fd_lane.capnp`: a token is good for 30 s, 64 may wait per process and 256 per user.
    pub fn new() -> Lane {
        Lane::with_limits(Duration::from_secs(wire::TOKEN_LIFETIME_SECONDS.into()), wire::MAX_TOKENS_PER_USER.into())
    }

    /// An empty table with tighter limits than the schema's; with room for nobody, all are told that it is full.
    pub fn with_limits(lifetime: Duration, per_user: usize) -> Lane {
        let table = Table { waiting: HashMap::new(), lifetime, per_user, takes_deposits: per_user > 0 };
        Lane { table: Rc::new(RefCell::new(table)), added: Rc::default() }
    }

    /// The same, for a vat that is handed nothing: what a client deposits does not even come into this process, where closing it could
    /// wait for a stranger (a file of FUSE is flushed by its server), and the client is told that the table is full.
    #[must_use]
    pub fn without_deposits(self) -> Lane {
        self.table.borrow_mut().takes_deposits = false;
        self
    }

    /// Whether descriptors are received at all.
    pub(crate) fn takes_deposits(&self) -> bool {
        self.table.borrow().takes_deposits
    }

    /// Keeps `fd` for the user of `peer`, while that connection lasts, and gives the token that claims it over the lane. Fails with `overloaded`.
    pub fn offer(&self, fd: OwnedFd, peer: Peer) -> Result<Token, Fault> {
        self.keep(fd, peer, To::Client)
    }

    /// Closes what was offered to a connection that has ended and nobody claimed: its holder must not seem to live on.
    pub(crate) fn withdraw(&self, peer: Peer) {
        let gone = |entry: &Waiting| entry.to == To::Client && entry.connection == peer.connection;
        self.table.borrow_mut().waiting.retain(|_, entry| !gone(entry));
    }

    /// Takes the descriptor that the user of `peer` deposited under `token`. Fails with `badToken`.
    pub fn redeem(&self, token: &[u8], peer: Peer) -> Result<OwnedFd, Fault> {
        self.take(token, peer, To::Service)
    }

    /// Keeps what came over the lane for [`redeem`](Lane::redeem).
    pub(crate) fn deposit(&self, fd: OwnedFd, peer: Peer) -> Result<Token, Fault> {
        self.keep(fd, peer, To::Service)
    }

    /// Takes what was [`offer`](Lane::offer)ed.
    pub(crate) fn claim(&self, token: &[u8], peer: Peer) -> Result<OwnedFd, Fault> {
        self.take(token, peer, To::Client)
    }

    fn keep(&self, fd: OwnedFd, peer: Peer, to: To) -> Result<Token, Fault> {
        let mut table = self.table.borrow_mut();
        table.expire();
        if table.is_full_for(peer) {
            return Err(too_many_tokens());
        }
        let token = Token::random()?;
        let until = Instant::now() + table.lifetime;
        table
            .waiting
            .insert(token, Waiting { fd, uid: peer.uid, pid: peer.pid, connection: peer.connection, to, until });
        self.added.notify_one();
        Ok(token)
    }

    fn take(&self, token: &[u8], peer: Peer, to: To) -> Result<OwnedFd, Fault> {
        let token = Token::from_bytes(token)?;
        let mut table = self.table.borrow_mut();
        table.expire();
        if table.waiting.get(&token).is_none_or(|entry| entry.uid != peer.uid || entry.to != to) {
            return Err(bad_token());
        }
        table.waiting.remove(&token).map(|entry| entry.fd).ok_or_else(bad_token)
    }

    /// How many descriptors wait, over all users.
    pub fn waiting(&self) -> usize {
        self.table.borrow().waiting.len()
    }

    /// Closes each descriptor when its token expires. Sleeps while none waits.
    pub(crate) async fn keep_clean(&self) -> std::convert::Infallible {
        loop {
            let added = self.added.notified();
            let next = {
                let mut table = self.table.borrow_mut();
                table.expire();
                table.waiting.values().map(|entry| entry.until).min()
            };
            match next {
                Some(until) => tokio::time::sleep_until(until).await,
                None => added.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Peer = Peer { uid: 1000, gid: 1000, pid: 1, connection: 0 };
    const BOB: Peer = Peer { uid: 1001, gid: 1000, pid: 1, connection: 0 };

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_token_claims_its_descriptor_once() {
        let lane = Lane::new();
        let token = lane.offer(fd(), ALICE).unwrap();
        lane.claim(token.as_bytes(), ALICE).unwrap();
        assert_eq!(lane.claim(token.as_bytes(), ALICE).unwrap_err().code, Code::BadToken);
    }

    #[test]
    fn a_token_of_another_user_is_refused_and_stays_good_for_its_own() {
        let lane = Lane::new();
        let token = lane.offer(fd(), ALICE).unwrap();
        assert_eq!(lane.claim(token.as_bytes(), BOB).unwrap_err().code, Code::BadToken);
        lane.claim(token.as_bytes(), ALICE).unwrap();
    }

    #[test]
    fn a_token_is_good_in_its_own_direction_only() {
        let lane = Lane::new();
        let offered = lane.offer(fd(), ALICE).unwrap();
        let deposited = lane.deposit(fd(), ALICE).unwrap();
        assert_eq!(lane.redeem(offered.as_bytes(), ALICE).unwrap_err().code, Code::BadToken);
        assert_eq!(lane.claim(deposited.as_bytes(), ALICE).unwrap_err().code, Code::BadToken);
        // The wrong way does not use it up.
        lane.claim(offered.as_bytes(), ALICE).unwrap();
        lane.redeem(deposited.as_bytes(), ALICE).unwrap();
    }

    #[test]
    fn a_token_of_another_length_is_refused() {
        let lane = Lane::new();
        let token = lane.offer(fd(), ALICE).unwrap();
        for bytes in [&[][..], &token.as_bytes()[..15], &[token.as_bytes(), &[0]].concat()] {
            assert_eq!(lane.claim(bytes, ALICE).unwrap_err().code, Code::BadToken);
        }
    }

    #[test]
    fn a_process_has_sixty_four_descriptors_waiting_and_the_next_is_refused_until_one_is_claimed() {
        let lane = Lane::new();
        let tokens: Vec<Token> = (0..64).map(|_| lane.offer(fd(), ALICE).unwrap()).collect();
        assert_eq!(lane.offer(fd(), ALICE).unwrap_err().code, Code::Overloaded);
        assert_eq!(lane.deposit(fd(), ALICE).unwrap_err().code, Code::Overloaded);
        lane.offer(fd(), BOB).unwrap();
        lane.offer(fd(), Peer { pid: 2, ..ALICE }).unwrap();
        lane.claim(tokens[0].as_bytes(), ALICE).unwrap();
        lane.offer(fd(), ALICE).unwrap();
    }

    #[test]
    fn a_user_has_two_hundred_and_fifty_six_over_all_its_processes_and_roots_processes_count_one_by_one() {
        let lane = Lane::new();
        let fill = |uid: u32, pid: i32| {
            let peer = Peer { uid, gid: 0, pid, connection: 0 };
            (0..64).map(|_| lane.offer(fd(), peer).map(drop)).find(Result::is_err)
        };
        assert!((1..=4).all(|pid| fill(1000, pid).is_none()));
        assert!(fill(1000, 5).is_some());
        assert!((1..=6).all(|pid| fill(0, pid).is_none()));
        // Of those that cannot be told apart.
        assert!((0..4).all(|_| fill(1001, 0).is_none()));
        assert!(fill(1001, 0).is_some());
        let lane = Lane::new();
        let unseen = Peer { uid: 0, gid: 0, pid: 0, connection: 0 };
        assert_eq!((0..257).filter(|_| lane.offer(fd(), unseen).is_ok()).count(), 256);
    }

    #[test]
    fn a_token_is_good_before_its_lifetime_ends_and_bad_after() {
        let lane = Lane::with_limits(Duration::from_secs(2), 4);
        let early = lane.offer(fd(), ALICE).unwrap();
        let late = lane.offer(fd(), ALICE).unwrap();
        lane.claim(early.as_bytes(), ALICE).unwrap();
        std::thread::sleep(Duration::from_millis(2100));
        assert_eq!(lane.claim(late.as_bytes(), ALICE).unwrap_err().code, Code::BadToken);
    }

    #[test]
    fn tokens_do_not_repeat_and_are_not_shown() {
        let (a, b) = (Token::random().unwrap(), Token::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(format!("{a:?}"), "Token(..)");
    }
}
