//! Questions to the kernel over netlink, one socket each. Answers are read within a deadline, and only so much of them.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt::Timeout},
};

/// How long the kernel may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Bytes of a list of which no more is read.
const LONGEST: usize = 1 << 20;

pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_CREATE_EXCL: u16 = 0x600;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of nlmsghdr.
const HEADER: usize = 16;

/// A netlink message: nlmsghdr, then `body`.
pub fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    message.extend([0; 8]); // sequence number, port
    message.extend(body);
    message
}

/// Sends one message to the kernel and waits for its answer.
///
/// # Errors
///
/// The kernel's refusal, or why there was no answer.
pub fn ask(protocol: Option<Protocol>, message: &[u8]) -> Result<(), Errno> {
    let mut buffer = [0_u8; 4096];
    let socket = send(protocol, message)?;
    let (length, _) = rustix::net::recv(&socket, &mut buffer, RecvFlags::empty())?;
    answer(buffer.get(..length).unwrap_or_default())
}

/// Asks for a list, and gives the body of each message of it to `each`.
///
/// # Errors
///
/// The kernel's refusal, or why the list is not whole.
pub fn list(protocol: Option<Protocol>, message: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
    let (begin, mut heard) = (Instant::now(), 0);
    let socket = send(protocol, message)?;
    let mut buffer = vec![0_u8; 64 << 10];
    while begin.elapsed() < ANSWER && heard < LONGEST {
        let (length, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        heard += length;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let (said, behind) = first(rest)?;
            match said.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes) {
                Some(NLMSG_DONE) => return Ok(()),
                Some(NLMSG_ERROR) => return Err(answer(said).err().unwrap_or(Errno::BADMSG)),
                _ => each(said.get(HEADER..).unwrap_or_default()),
            }
            rest = behind;
        }
    }
    Err(Errno::TIMEDOUT)
}

fn send(protocol: Option<Protocol>, message: &[u8]) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
    rustix::net::send(&socket, message, SendFlags::empty())?;
    Ok(socket)
}

/// The first message of several, and those behind it.
fn first(messages: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let length = messages.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
    let said = messages.get(..length).filter(|said| said.len() >= HEADER).ok_or(Errno::BADMSG)?;
    Ok((said, messages.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The attributes in `bytes`, as far as their lengths can be: kind (without flags) and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}

/// An answer's error, if it is one. NLMSG_ERROR with code 0 is an acknowledgement.
fn answer(message: &[u8]) -> Result<(), Errno> {
    let field = |at: usize| message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let (Some(header), Some(_)) = (field(4), field(12)) else { return Err(Errno::BADMSG) };
    let [low, high, ..]: [u8; 4] = header;
    if u16::from_ne_bytes([low, high]) != NLMSG_ERROR {
        return Ok(());
    }
    match i32::from_ne_bytes(field(16).ok_or(Errno::BADMSG)?) {
        0 => Ok(()),
        code => Err(Errno::from_raw_os_error(code.checked_neg().unwrap_or(libc::EIO))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_an_error_only_where_it_says_so() {
        let error = |code: i32| message(NLMSG_ERROR, 0, &code.to_ne_bytes());
        assert_eq!(answer(&error(0)), Ok(()));
        assert_eq!(answer(&error(-libc::EOPNOTSUPP)), Err(Errno::OPNOTSUPP));
        assert_eq!(answer(&error(i32::MIN)), Err(Errno::IO));
        assert_eq!(answer(&message(0x0a0f, 0, &[0; 4])), Ok(()));
        let whole = error(-1);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length]), Err(Errno::BADMSG), "{length}");
        }
    }

    #[test]
    fn attributes_end_where_a_length_lies() {
        let two = [5, 0, 1, 0, b'x', 0, 0, 0, 8, 0, 2, 0x80, 1, 2, 3, 4];
        let all = |bytes| attributes(bytes).map(|(kind, value)| (kind, value.to_vec())).collect::<Vec<_>>();
        assert_eq!(all(&two), [(1, vec![b'x']), (2, vec![1, 2, 3, 4])]);
        for length in 0..two.len() {
            assert!(all(&two[..length]).len() <= 1, "{length}");
        }
        assert_eq!(all(&[3, 0, 1, 0]), []);
        assert_eq!(all(&[0; 8]), []);
    }

    #[test]
    fn messages_are_told_apart_within_what_there_is() {
        let both = [message(7, 0, &[1; 5]), vec![0; 3], message(8, 0, &[])].concat();
        let (said, behind) = first(&both).unwrap();
        assert_eq!((said.len(), behind.len()), (21, 16));
        for length in 0..21 {
            assert_eq!(first(&both[..length]), Err(Errno::BADMSG), "{length}");
        }
        assert_eq!(first(&[0; 32]), Err(Errno::BADMSG));
    }
}
