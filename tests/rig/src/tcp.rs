//! A service of TCP and its client, each in the network namespace of the thread that calls: who reaches whom, and whom it is taken for.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

/// Serves that port, of all addresses of both families, and says to each who it is taken for.
///
/// # Panics
/// Where somebody else serves it.
pub fn serve(port: u16) {
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let who = stream.peer_addr().map(|peer| peer.ip().to_canonical().to_string()).unwrap_or_default();
            let _ = stream.write_all(who.as_bytes());
        }
    });
}

/// Whom a service takes the caller for; `None` if that does not reach it.
///
/// # Panics
/// Where the patience is none at all.
pub fn reaches(to: SocketAddr, patience: Duration) -> Option<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut who = String::new();
    stream.read_to_string(&mut who).ok()?;
    who.parse().ok()
}
