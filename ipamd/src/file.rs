//! Opening the database file: is it ours, is it whole, is its schema current. Touches that file and those that SQLite puts beside it.
//! A file that is not ours, or that is damaged, is never written to.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::Error;

/// "ipam" in the file's header, where SQLite keeps the application's own mark.
const APPLICATION_ID: u32 = 0x6970_616d;

/// What turns the schema of version N, the index, into that of version N + 1. Entries are added at the end and never changed.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE pool (
        id       INTEGER PRIMARY KEY,
        network  TEXT NOT NULL UNIQUE,
        config   TEXT NOT NULL
    ) STRICT;

    CREATE TABLE binding (
        pool         INTEGER NOT NULL REFERENCES pool (id),
        address      INTEGER NOT NULL CHECK (address BETWEEN 0 AND 4294967295),
        workload     TEXT NOT NULL,
        lease        INTEGER UNIQUE,
        grace_until  INTEGER CHECK (grace_until IS NULL OR lease IS NOT NULL),
        reserved     INTEGER NOT NULL CHECK (reserved IN (0, 1, 2)),
        ref_hash     BLOB UNIQUE CHECK (length(ref_hash) = 32),
        PRIMARY KEY (pool, address),
        CHECK ((ref_hash IS NOT NULL) = (reserved = 2)),
        CHECK (lease IS NOT NULL OR reserved <> 0)
    ) STRICT, WITHOUT ROWID;

    CREATE UNIQUE INDEX one_lease_a_workload ON binding (pool, workload) WHERE lease IS NOT NULL;
    CREATE UNIQUE INDEX one_reservation_a_workload ON binding (pool, workload) WHERE reserved <> 0;
"];

/// Opens the database at `path`, or makes an empty one: exclusively, checked, and brought to the current schema.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Corrupt`], [`Error::Newer`], [`Error::InUse`], [`Error::Read`], [`Error::Open`].
pub fn open(path: &Path) -> Result<Connection, Error> {
    check_header(path)?;
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::InUse(path.into()),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Error::Corrupt { path: path.into(), why: source.to_string() }
        }
        _ => Error::Open(path.into(), source),
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(failed)?;
    configure(&db).map_err(failed)?;

    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    if found > known || found < 0 {
        return Err(Error::Newer { path: path.into(), found, known });
    }
    let verdict: String = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if verdict != "ok" {
        return Err(Error::Corrupt { path: path.into(), why: verdict });
    }
    migrate(&db, found).map_err(failed)?;
    // Only now: the mark must be in the file itself, not in a write-ahead log beside it, when the next start looks for it.
    db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)).map_err(failed)?;
    Ok(db)
}

/// Looks at the first bytes before SQLite does, which might roll a stranger's journal back.
fn check_header(path: &Path) -> Result<(), Error> {
    // Not through a link, which SQLite would resolve by calls that it has no other need for.
    let open = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let mut file = match open {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::Read(path.into(), e)),
    };
    let mut header = Vec::new();
    file.by_ref().take(100).read_to_end(&mut header).map_err(|e| Error::Read(path.into(), e))?;
    // SQLite leaves an empty file behind where it was stopped before its first commit.
    if header.is_empty() {
        return Ok(());
    }
    let foreign = |why: &str| Error::Foreign { path: path.into(), why: why.into() };
    if header.len() < 100 || !header.starts_with(b"SQLite format 3\0") {
        return Err(foreign("it does not begin as an SQLite file does"));
    }
    // SQLite file format, section 1.3.8: big-endian at offset 68.
    match header.get(68..72).and_then(|id| id.try_into().ok()).map(u32::from_be_bytes) {
        Some(APPLICATION_ID) => Ok(()),
        _ => Err(foreign("it is an SQLite file of another application")),
    }
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    // Long enough for a predecessor that was just killed to be gone.
    db.busy_timeout(Duration::from_secs(2))?;
    // Exclusive, before the first access: nobody else can write, and the index of the write-ahead log is kept in this process's memory.
    for (name, value) in [
        ("locking_mode", "EXCLUSIVE"),
        ("synchronous", "FULL"),
        ("foreign_keys", "ON"),
        ("trusted_schema", "OFF"),
        ("cell_size_check", "ON"),
        ("temp_store", "MEMORY"),
        ("journal_size_limit", "16777216"),
    ] {
        db.pragma_update_and_check(None, name, value, |_| Ok(())).or_else(|e| match e {
            rusqlite::Error::QueryReturnedNoRows => Ok(()),
            e => Err(e),
        })?;
    }
    db.set_prepared_statement_cache_capacity(32);
    // Takes the lock, and with it the decision who serves this file.
    db.execute_batch("BEGIN EXCLUSIVE; COMMIT")
}

fn migrate(db: &Connection, from: i64) -> rusqlite::Result<()> {
    let from = usize::try_from(from).unwrap_or(0);
    let Some(steps) = MIGRATIONS.get(from..).filter(|steps| !steps.is_empty()) else { return Ok(()) };
    db.execute_batch("BEGIN IMMEDIATE")?;
    for step in steps {
        db.execute_batch(step)?;
    }
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    db.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    db.execute_batch("COMMIT")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipamd.sqlite");
        (dir, path)
    }

    #[test]
    fn a_new_file_is_marked_and_current_and_opens_again() {
        let (_dir, path) = file();
        drop(open(&path).unwrap());
        let db = open(&path).unwrap();
        assert_eq!(db.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0)).unwrap(), 1);
        assert_eq!(db.pragma_query_value(None, "journal_mode", |r| r.get::<_, String>(0)).unwrap(), "wal");
        assert_eq!(db.pragma_query_value(None, "synchronous", |r| r.get::<_, i64>(0)).unwrap(), 2);
        assert_eq!(db.pragma_query_value(None, "locking_mode", |r| r.get::<_, String>(0)).unwrap(), "exclusive");
    }

    #[test]
    fn an_empty_file_is_what_an_interrupted_first_start_leaves_and_is_filled() {
        let (_dir, path) = file();
        std::fs::write(&path, b"").unwrap();
        open(&path).unwrap();
    }

    #[test]
    fn a_foreign_file_is_refused_and_left_as_it_is() {
        let (_dir, path) = file();
        std::fs::write(&path, b"not a database at all").unwrap();
        assert!(matches!(open(&path), Err(Error::Foreign { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"not a database at all");

        std::fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE mine (x)").unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(open(&path), Err(Error::Foreign { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_as_it_is() {
        let (_dir, path) = file();
        drop(open(&path).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        let len = bytes.len();
        bytes[100..len].fill(0xa5);
        std::fs::write(&path, &bytes).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("backup"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_file_of_a_later_version_is_refused() {
        let (_dir, path) = file();
        open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
        assert!(matches!(open(&path), Err(Error::Newer { found: 2, known: 1, .. })));
    }

    #[test]
    fn a_second_opener_is_told_that_the_file_is_in_use() {
        // SQLite's locks are per process: the other holder has to be another process, which is what the integration tests have.
        let (_dir, path) = file();
        let held = open(&path).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, Error::InUse(_)), "{error}");
        drop(held);
    }

    #[test]
    fn the_schema_itself_refuses_double_allocations() {
        let (_dir, path) = file();
        let db = open(&path).unwrap();
        db.execute_batch(
            "INSERT INTO pool VALUES (1, 'n', '{}'); INSERT INTO binding VALUES (1, 5, 'vm-a', 1, NULL, 0, NULL)",
        )
        .unwrap();
        for bad in [
            "(1, 5, 'vm-b', 2, NULL, 0, NULL)",
            "(1, 6, 'vm-a', 2, NULL, 0, NULL)",
            "(1, 6, 'vm-b', 1, NULL, 0, NULL)",
            "(1, 6, 'vm-b', NULL, NULL, 0, NULL)",
            "(1, 6, 'vm-b', NULL, 5, 1, NULL)",
            "(1, 6, 'vm-b', NULL, NULL, 2, NULL)",
            "(1, 6, 'vm-b', NULL, NULL, 1, zeroblob(32))",
            "(1, 6, 'vm-b', NULL, NULL, 2, zeroblob(31))",
            "(2, 6, 'vm-b', 2, NULL, 0, NULL)",
        ] {
            let error = db.execute_batch(&format!("INSERT INTO binding VALUES {bad}")).unwrap_err();
            assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation), "{bad}: {error}");
        }
        db.execute_batch("INSERT INTO binding VALUES (1, 6, 'vm-a', NULL, NULL, 2, zeroblob(32))").unwrap();
    }
}
