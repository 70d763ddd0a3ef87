//! The lease store: rows in one SQLite file, and nothing about when to write which. Touches that file alone; sees no client and no secret
//! (of a SturdyRef it is given the hash).
//!
//! One row of `binding` ties one address to one workload, because it is leased, reserved or both. Two rows with one address cannot be
//! (the primary key), nor two leases or two reservations of one workload in a pool (partial unique indexes): whatever the rest of the
//! program gets wrong, the database refuses a double allocation.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::Error;
use crate::file;

/// Names one pool. Never used twice while the process lives: capabilities on a pool that was removed lead nowhere.
pub type PoolId = i64;
/// Names one lease. Never used twice: it grows while the process lives, and begins from the clock or the file, whichever is higher.
pub type LeaseId = i64;
/// SHA-256 of a SturdyRef.
pub type RefHash = [u8; 32];

/// Why an address is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// It is not.
    No,
    /// The pool's configuration says so.
    ByConfig,
    /// `reserve` was called; the SturdyRef with this hash restores it.
    Durable(RefHash),
}

/// What is known of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leased {
    /// Its name.
    pub id: LeaseId,
    /// Until when the address is kept for the workload now that the holder has gone, in milliseconds since the Unix epoch;
    /// `None` while it is held.
    pub grace_until: Option<i64>,
}

/// One row: an address that is leased, reserved or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Its pool.
    pub pool: PoolId,
    /// The address.
    pub address: Ipv4Addr,
    /// Whose it is.
    pub workload: String,
    /// Its lease, if any.
    pub lease: Option<Leased>,
    /// Whether it is set aside.
    pub reserved: Reserved,
}

const COLUMNS: &str = "SELECT pool, address, workload, lease, grace_until, reserved, ref_hash FROM binding ";

/// The open database.
pub struct Store {
    db: Connection,
    folder: PathBuf,
}

type Result<T> = rusqlite::Result<T>;

impl Store {
    /// Opens or creates the database file, alone: no other process can open it until this one ends.
    ///
    /// # Errors
    /// What [`file::open`] says.
    pub fn open(path: &Path) -> std::result::Result<Store, Error> {
        let folder = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        file::open(path).map(|db| Store { db, folder })
    }

    /// The state directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs one of the few statements without parameters: BEGIN, COMMIT, SAVEPOINT and their kin.
    pub fn run(&self, statement: &'static str) -> Result<()> {
        self.db.prepare_cached(statement)?.execute([]).map(|_| ())
    }

    /// Whether a transaction is open. SQLite ends one by itself on some failures (a full disk, for one).
    pub fn in_transaction(&self) -> bool {
        !self.db.is_autocommit()
    }

    /// Every pool with its configuration text, and the address at which the search for a free one begins.
    pub fn pools(&self) -> Result<Vec<(PoolId, String, u32)>> {
        let mut statement = self.db.prepare_cached("SELECT id, config, next FROM pool ORDER BY network")?;
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
    }

    /// Sets where the next search for a free address begins.
    pub fn set_next(&self, pool: PoolId, next: u32) -> Result<()> {
        self.db.prepare_cached("UPDATE pool SET next = ? WHERE id = ?")?.execute(params![next, pool]).and_then(one)
    }

    /// Adds a pool.
    pub fn add_pool(&self, pool: PoolId, network: &str, config: &str) -> Result<()> {
        let sql = "INSERT INTO pool (id, network, config) VALUES (?, ?, ?)";
        self.db.prepare_cached(sql)?.execute(params![pool, network, config]).and_then(one)
    }

    /// Takes a pool out with what is reserved by its configuration. Fails if it has other rows.
    pub fn remove_pool(&self, pool: PoolId) -> Result<()> {
        self.db
            .prepare_cached("DELETE FROM binding WHERE pool = ? AND reserved = 1 AND lease IS NULL")?
            .execute([pool])?;
        self.db.prepare_cached("DELETE FROM pool WHERE id = ?")?.execute([pool]).and_then(one)
    }

    /// A row of a pool that is leased or has a durable reservation, if there is one.
    pub fn in_use(&self, pool: PoolId) -> Result<Option<Binding>> {
        let sql = format!("{COLUMNS} WHERE pool = ? AND (lease IS NOT NULL OR reserved = 2) LIMIT 1");
        self.db.prepare_cached(&sql)?.query_row([pool], binding).optional()
    }

    /// Changes a pool's configuration text.
    pub fn change_pool(&self, pool: PoolId, config: &str) -> Result<()> {
        self.db.prepare_cached("UPDATE pool SET config = ? WHERE id = ?")?.execute(params![config, pool]).and_then(one)
    }

    /// Calls `each` with every row of every pool.
    pub fn each_binding(&self, mut each: impl FnMut(Binding)) -> Result<()> {
        let mut statement = self.db.prepare_cached(COLUMNS)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(binding(row)?);
        }
        Ok(())
    }

    /// At most `limit` rows of a pool, by address, from the one behind `after` on.
    pub fn page(&self, pool: PoolId, after: Option<Ipv4Addr>, limit: u32) -> Result<Vec<Binding>> {
        let after = after.map_or(-1, |address| i64::from(address.to_bits()));
        let sql = format!("{COLUMNS} WHERE pool = ? AND address > ? ORDER BY address LIMIT ?");
        self.db.prepare_cached(&sql)?.query_map(params![pool, after, limit], binding)?.collect()
    }

    /// The row of an address.
    pub fn by_address(&self, pool: PoolId, address: Ipv4Addr) -> Result<Option<Binding>> {
        let sql = format!("{COLUMNS} WHERE pool = ? AND address = ?");
        self.db.prepare_cached(&sql)?.query_row(params![pool, address.to_bits()], binding).optional()
    }

    /// The row of the address that a workload leases, held or in grace.
    pub fn leased_by(&self, pool: PoolId, workload: &str) -> Result<Option<Binding>> {
        let sql = format!("{COLUMNS} WHERE pool = ? AND workload = ? AND lease IS NOT NULL");
        self.db.prepare_cached(&sql)?.query_row(params![pool, workload], binding).optional()
    }

    /// The row of the address that is reserved for a workload.
    pub fn reserved_for(&self, pool: PoolId, workload: &str) -> Result<Option<Binding>> {
        let sql = format!("{COLUMNS} WHERE pool = ? AND workload = ? AND reserved <> 0");
        self.db.prepare_cached(&sql)?.query_row(params![pool, workload], binding).optional()
    }

    /// The row of a lease.
    pub fn by_lease(&self, lease: LeaseId) -> Result<Option<Binding>> {
        let sql = format!("{COLUMNS} WHERE lease = ?");
        self.db.prepare_cached(&sql)?.query_row([lease], binding).optional()
    }

    /// The row of a durable reservation.
    pub fn by_ref(&self, hash: &RefHash) -> Result<Option<Binding>> {
        let sql = format!("{COLUMNS} WHERE ref_hash = ?");
        self.db.prepare_cached(&sql)?.query_row([hash.as_slice()], binding).optional()
    }

    /// Adds a row. Fails if the address has one, or the workload a second lease or reservation by it.
    pub fn insert(&self, row: &Binding) -> Result<()> {
        let sql = "INSERT INTO binding (pool, address, workload, lease, grace_until, reserved, ref_hash) VALUES (?, ?, ?, ?, ?, ?, ?)";
        let (reserved, hash) = reserved_columns(&row.reserved);
        let (lease, grace) = lease_columns(row.lease);
        let parameters = params![row.pool, row.address.to_bits(), row.workload, lease, grace, reserved, hash];
        self.db.prepare_cached(sql)?.execute(parameters).and_then(one)
    }

    /// Changes the lease and the reservation of a row that is there.
    pub fn update(&self, row: &Binding) -> Result<()> {
        let sql = "UPDATE binding SET lease = ?, grace_until = ?, reserved = ?, ref_hash = ? WHERE pool = ? AND address = ? AND workload = ?";
        let (reserved, hash) = reserved_columns(&row.reserved);
        let (lease, grace) = lease_columns(row.lease);
        let parameters = params![lease, grace, reserved, hash, row.pool, row.address.to_bits(), row.workload];
        self.db.prepare_cached(sql)?.execute(parameters).and_then(one)
    }

    /// Takes a row out.
    pub fn delete(&self, pool: PoolId, address: Ipv4Addr) -> Result<()> {
        let sql = "DELETE FROM binding WHERE pool = ? AND address = ?";
        self.db.prepare_cached(sql)?.execute(params![pool, address.to_bits()]).and_then(one)
    }

    /// Begins the grace period of a lease that is held. False if there is none.
    pub fn begin_grace(&self, lease: LeaseId, until: i64) -> Result<bool> {
        let sql = "UPDATE binding SET grace_until = ? WHERE lease = ? AND grace_until IS NULL";
        self.db.prepare_cached(sql)?.execute([until, lease]).map(|changed| changed > 0)
    }

    /// Begins the grace periods of many, in a transaction of its own.
    pub fn begin_graces(&self, leases: &[LeaseId], until: i64) -> Result<()> {
        if leases.is_empty() {
            return Ok(());
        }
        let transaction = self.db.unchecked_transaction()?;
        for lease in leases {
            self.begin_grace(*lease, until)?;
        }
        transaction.commit()
    }

    /// Brings what the log holds to the database, and gives the log's space back.
    pub fn checkpoint(&self) -> Result<()> {
        self.db.prepare_cached("PRAGMA wal_checkpoint(TRUNCATE)")?.query_row([], |_| Ok(()))
    }

    /// The highest lease in the file, 0 if there is none.
    pub fn last_lease(&self) -> Result<LeaseId> {
        self.db.query_row("SELECT coalesce(max(lease), 0) FROM binding", [], |row| row.get(0))
    }
}

/// Exactly one row was to change.
fn one(changed: usize) -> Result<()> {
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

fn lease_columns(lease: Option<Leased>) -> (Option<LeaseId>, Option<i64>) {
    (lease.map(|lease| lease.id), lease.and_then(|lease| lease.grace_until))
}

fn reserved_columns(reserved: &Reserved) -> (i64, Option<&[u8]>) {
    match reserved {
        Reserved::No => (0, None),
        Reserved::ByConfig => (1, None),
        Reserved::Durable(hash) => (2, Some(hash)),
    }
}

fn binding(row: &Row) -> Result<Binding> {
    let lease: Option<LeaseId> = row.get(3)?;
    let grace_until = row.get(4)?;
    Ok(Binding {
        pool: row.get(0)?,
        address: Ipv4Addr::from(row.get::<_, u32>(1)?),
        workload: row.get(2)?,
        lease: lease.map(|id| Leased { id, grace_until }),
        reserved: match row.get::<_, Option<RefHash>>(6)? {
            Some(hash) => Reserved::Durable(hash),
            None if row.get::<_, i64>(5)? != 0 => Reserved::ByConfig,
            None => Reserved::No,
        },
    })
}
