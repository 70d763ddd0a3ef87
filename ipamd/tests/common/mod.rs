//! The calls of a client of a real `ipamd`.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use ipc::{Connection, Fault};
use schema::addresses_capnp::{allocator, ipam, lease, lease_info, pool, reservation};
pub use testrig::service::{DEADLINE, code, eventually, refusal, run};

pub const CONFIG: &str = r#"{"network":"volt0","subnet":"10.42.0.0/24","gateway":"10.42.0.1","pool":{"start":"10.42.0.2","end":"10.42.0.254"},
  "reservations":{"vm-web":"10.42.0.10","container-db":"10.42.0.20"}}"#;

pub type Service = testrig::service::Service<Client>;

pub struct Client {
    pub connection: Connection,
    pub ipam: ipam::Client,
}

impl From<Connection> for Client {
    fn from(connection: Connection) -> Client {
        Client { ipam: connection.bootstrap(), connection }
    }
}

impl testrig::service::Client for Client {
    const PROGRAM: &'static str = env!("CARGO_BIN_EXE_ipamd");
    const KEEPS: bool = true;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub workload: String,
    pub address: String,
    pub state: lease_info::State,
    pub reserved: bool,
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Client, Fault> {
        Connection::connect(socket).await.map(Client::from)
    }

    pub async fn define(&self, config: &str) -> Result<pool::Client, Fault> {
        let mut request = self.ipam.define_pool_request();
        request.get().set_config(config);
        let answer = self.connection.call("define a pool", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_pool()?)
    }

    pub async fn pool(&self, network: &str) -> Result<pool::Client, Fault> {
        let mut request = self.ipam.pool_request();
        request.get().set_network(network);
        let answer = self.connection.call("get a pool", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_pool()?)
    }

    pub async fn networks(&self) -> Vec<String> {
        self.try_networks().await.unwrap()
    }

    pub async fn try_networks(&self) -> Result<Vec<String>, Fault> {
        let answer = self.connection.call("list", DEADLINE, self.ipam.list_request().send()).await?;
        Ok(answer.get()?.get_pools()?.iter().map(|pool| pool.get_network().unwrap().to_string().unwrap()).collect())
    }

    pub async fn allocator(&self, pool: &pool::Client, most: u32) -> Result<allocator::Client, Fault> {
        let mut request = pool.allocator_request();
        request.get().set_max_leases(most);
        let answer = self.connection.call("make an allocator", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_allocator()?)
    }

    pub async fn allocate(&self, allocator: &allocator::Client, workload: &str) -> Result<lease::Client, Fault> {
        let mut request = allocator.allocate_request();
        request.get().set_workload(workload);
        let answer = self.connection.call("allocate", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_lease()?)
    }

    pub async fn info(&self, lease: &lease::Client) -> Result<Info, Fault> {
        let answer = self.connection.call("lease info", DEADLINE, lease.info_request().send()).await?;
        Ok(read(answer.get()?.get_info()?))
    }

    pub async fn release(&self, lease: &lease::Client) -> Result<(), Fault> {
        self.connection.call("release", DEADLINE, lease.release_request().send()).await.map(|_| ())
    }

    /// A lease's life, as the supervisor gets it: by a token, over the fd lane.
    pub async fn life(&self, lease: &lease::Client) -> Result<OwnedFd, Fault> {
        let answer = self.connection.call("life", DEADLINE, lease.life_request().send()).await?;
        self.connection.claim(answer.get()?.get_life()?.get_bytes()?).await
    }

    pub async fn resume(&self, pool: &pool::Client, life: BorrowedFd<'_>) -> Result<lease::Client, Fault> {
        let token = self.connection.deposit(life).await?;
        self.resume_with(pool, token.as_bytes()).await
    }

    pub async fn resume_with(&self, pool: &pool::Client, token: &[u8]) -> Result<lease::Client, Fault> {
        let mut request = pool.resume_request();
        request.get().init_life().set_bytes(token);
        let answer = self.connection.call("resume", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_lease()?)
    }

    pub async fn remove_pool(&self, network: &str) -> Result<(), Fault> {
        let mut request = self.ipam.remove_pool_request();
        request.get().set_network(network);
        self.connection.call("remove a pool", DEADLINE, request.send()).await.map(|_| ())
    }

    pub async fn reserve(
        &self,
        pool: &pool::Client,
        workload: &str,
        address: &str,
    ) -> Result<(reservation::Client, Vec<u8>), Fault> {
        let mut request = pool.reserve_request();
        request.get().set_workload(workload);
        request.get().set_address(address);
        let answer = self.connection.call("reserve", DEADLINE, request.send()).await?;
        let answer = answer.get()?;
        Ok((answer.get_reservation()?, answer.get_sturdy_ref()?.to_vec()))
    }

    pub async fn restore(&self, pool: &pool::Client, sturdy_ref: &[u8]) -> Result<reservation::Client, Fault> {
        let mut request = pool.restore_request();
        request.get().set_sturdy_ref(sturdy_ref);
        let answer = self.connection.call("restore", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_reservation()?)
    }

    pub async fn reservation(&self, pool: &pool::Client, workload: &str) -> Result<reservation::Client, Fault> {
        let mut request = pool.reservation_request();
        request.get().set_workload(workload);
        let answer = self.connection.call("find a reservation", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_reservation()?)
    }

    pub async fn cancel(&self, reservation: &reservation::Client) -> Result<(), Fault> {
        self.connection.call("cancel", DEADLINE, reservation.cancel_request().send()).await.map(|_| ())
    }

    pub async fn reservation_info(&self, reservation: &reservation::Client) -> Result<Info, Fault> {
        let answer = self.connection.call("info", DEADLINE, reservation.info_request().send()).await?;
        Ok(read(answer.get()?.get_info()?))
    }

    /// Every page.
    pub async fn leases(&self, pool: &pool::Client) -> Vec<Info> {
        let mut all: Vec<Info> = Vec::new();
        loop {
            let mut request = pool.leases_request();
            request.get().set_after(all.last().map_or("", |info| info.address.as_str()));
            let answer = self.connection.call("list leases", DEADLINE, request.send()).await.unwrap();
            let page = answer.get().unwrap().get_leases().unwrap();
            if page.is_empty() {
                return all;
            }
            all.extend(page.iter().map(read));
        }
    }

    pub async fn free(&self, pool: &pool::Client) -> u64 {
        let answer = self.connection.call("pool info", DEADLINE, pool.info_request().send()).await.unwrap();
        answer.get().unwrap().get_info().unwrap().get_free()
    }
}

fn read(info: lease_info::Reader) -> Info {
    Info {
        workload: info.get_workload().unwrap().to_string().unwrap(),
        address: info.get_address().unwrap().to_string().unwrap(),
        state: info.get_state().unwrap(),
        reserved: info.get_reserved(),
    }
}
