//! Opening the database file: is it ours, is it whole, is its schema current. Touches that file and those that SQLite puts beside it.
//! A file that is not ours, or damaged, or from a later version, is never written to, and neither is what lies beside it: whoever is to
//! mend it needs the log as it was.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;

use crate::error::Error;

/// "ipam" in the file's header, where SQLite keeps the application's own mark.
const APPLICATION_ID: u32 = 0x6970_616d;

/// What turns the schema of version N, the index, into that of version N + 1. Entries are added at the end and never changed.
const MIGRATIONS: [&str; 2] = [
    "
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
",
    "
    -- The address behind the one that was handed out last.
    ALTER TABLE pool ADD COLUMN next INTEGER NOT NULL DEFAULT 0 CHECK (next BETWEEN 0 AND 4294967295);
",
];

/// Opens the database at `path`, or makes an empty one: exclusively, checked, and brought to the current schema.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Corrupt`], [`Error::Newer`], [`Error::InUse`], [`Error::Read`], [`Error::Open`].
pub fn open(path: &Path) -> Result<Connection, Error> {
    let log = check_files(path)?;
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::InUse(path.into()),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Error::Corrupt { path: path.into(), why: source.to_string() }
        }
        _ => Error::Open(path.into(), source),
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(failed)?;
    // Whoever closes last brings the log to the database and removes it. Not where the database is refused; a log that SQLite made itself
    // only now is to go.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, log).map_err(failed)?;
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
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(failed)?;
    migrate(&db, found).map_err(failed)?;
    // Only now: the mark must be in the file itself, not in a write-ahead log beside it, when the next start looks for it.
    db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)).map_err(failed)?;
    Ok(db)
}

/// Looks at what is there before SQLite does, which rolls a stranger's journal back, and drops the log of a database that is empty. Whether
/// there is a log.
fn check_files(path: &Path) -> Result<bool, Error> {
    let beside = |suffix: &str| {
        let path = PathBuf::from([path.as_os_str(), suffix.as_ref()].join(OsStr::new("")));
        match rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.st_size > 0)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::Read(path, errno.into())),
        }
    };
    let (log, journal) = (beside("-wal")?, beside("-journal")?);
    let corrupt = |why: &str| Err(Error::Corrupt { path: path.into(), why: why.into() });
    if check_header(path)? && log == Some(true) {
        return corrupt("it is empty or not there, and the log beside it is not");
    }
    // The first start has a journal and no log yet, and every later one a log and no journal.
    if (log, journal) == (Some(true), Some(true)) {
        return corrupt("a log and a rollback journal lie beside it");
    }
    Ok(log.is_some())
}

/// Looks at the first bytes. Whether there are none.
fn check_header(path: &Path) -> Result<bool, Error> {
    // Not through a link, which SQLite would resolve by calls that it has no other need for.
    let open = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let mut file = match open {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(Error::Read(path.into(), e)),
    };
    let mut header = Vec::new();
    file.by_ref().take(100).read_to_end(&mut header).map_err(|e| Error::Read(path.into(), e))?;
    // SQLite leaves an empty file behind where it was stopped before its first commit.
    if header.is_empty() {
        return Ok(true);
    }
    let foreign = |why: &str| Error::Foreign { path: path.into(), why: why.into() };
    if header.len() < 100 || !header.starts_with(b"SQLite format 3\0") {
        return Err(foreign("it does not begin as an SQLite file does"));
    }
    // SQLite file format, section 1.3.8: big-endian at offset 68.
    match header.get(68..72).and_then(|id| id.try_into().ok()).map(u32::from_be_bytes) {
        Some(APPLICATION_ID) => Ok(false),
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
        assert_eq!(db.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0)).unwrap(), 2);
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

    /// What a process that was killed leaves: a database, and a log with most of what it holds.
    fn killed() -> (tempfile::TempDir, PathBuf) {
        let (dir, path) = file();
        let (_alive, from) = file();
        let db = open(&from).unwrap();
        db.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
        for n in 0..200 {
            db.execute("INSERT INTO pool VALUES (?, ?, '{}', 0)", rusqlite::params![n, format!("net-{n}")]).unwrap();
        }
        for suffix in ["", "-wal"] {
            std::fs::copy(beside(&from, suffix), beside(&path, suffix)).unwrap();
        }
        assert!(std::fs::metadata(beside(&path, "-wal")).unwrap().len() > 100_000);
        (dir, path)
    }

    fn beside(path: &Path, suffix: &str) -> PathBuf {
        path.with_file_name(format!("ipamd.sqlite{suffix}"))
    }

    /// Every file and all that is in it.
    fn all(dir: &tempfile::TempDir) -> std::collections::BTreeMap<std::ffi::OsString, Vec<u8>> {
        let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap())).collect()
    }

    fn refused(dir: &tempfile::TempDir, path: &Path) -> Error {
        let before = all(dir);
        let error = open(path).unwrap_err();
        let (names, after): (Vec<_>, _) = (before.keys().collect(), all(dir));
        assert_eq!(names, after.keys().collect::<Vec<_>>(), "{error}");
        assert!(before == after, "not a byte is another: {error}");
        error
    }

    fn damage(path: &Path, from: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[from..].fill(0xa5);
        std::fs::write(path, &bytes).unwrap();
    }

    #[test]
    fn what_a_killed_process_leaves_is_taken_over() {
        let (_dir, path) = killed();
        let db = open(&path).unwrap();
        assert_eq!(db.query_row("SELECT count(*) FROM pool", [], |row| row.get::<_, i64>(0)).unwrap(), 200);
        drop(db);
        assert!(!beside(&path, "-wal").exists(), "and closed in good order");
    }

    #[test]
    fn a_damaged_database_is_refused_and_it_and_all_beside_it_are_left_as_they_are() {
        for log in [true, false] {
            let (dir, path) = if log { killed() } else { file() };
            if !log {
                drop(open(&path).unwrap());
            }
            // What another program may have left.
            std::fs::write(beside(&path, "-shm"), [7; 32768]).unwrap();
            damage(&path, 4096 + 100);
            let error = refused(&dir, &path);
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("backup"), "{error}");
            // Its first page as well.
            damage(&path, 100);
            assert!(matches!(refused(&dir, &path), Error::Corrupt { .. }));
        }
    }

    #[test]
    fn an_empty_or_missing_database_beside_a_log_that_is_not_is_refused_and_the_log_left() {
        let (dir, path) = killed();
        std::fs::write(&path, b"").unwrap();
        let error = refused(&dir, &path);
        assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains("log"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(refused(&dir, &path), Error::Corrupt { .. }));
        // An empty log says nothing: the first start may have made it.
        std::fs::write(&path, b"").unwrap();
        std::fs::write(beside(&path, "-wal"), b"").unwrap();
        open(&path).unwrap();
    }

    #[test]
    fn a_journal_beside_a_log_is_refused_and_not_rolled_back() {
        let (dir, path) = killed();
        std::fs::write(beside(&path, "-journal"), [1; 512]).unwrap();
        assert!(matches!(refused(&dir, &path), Error::Corrupt { .. }));
    }

    #[test]
    fn a_foreign_file_beside_a_log_is_refused_and_both_are_left() {
        let (dir, path) = killed();
        damage(&path, 0);
        assert!(matches!(refused(&dir, &path), Error::Foreign { .. }));
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(refused(&dir, &path), Error::Foreign { .. }));
    }

    #[test]
    fn a_file_of_a_later_version_is_refused_and_left_also_where_only_its_log_says_so() {
        let (dir, path) = file();
        open(&path).unwrap().pragma_update(None, "user_version", 3).unwrap();
        assert!(matches!(refused(&dir, &path), Error::Newer { found: 3, known: 2, .. }));

        let (dir, path) = killed();
        let (later, from) = file();
        for suffix in ["", "-wal"] {
            std::fs::copy(beside(&path, suffix), beside(&from, suffix)).unwrap();
        }
        let db = open(&from).unwrap();
        db.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA user_version = 3").unwrap();
        std::fs::copy(beside(&from, "-wal"), beside(&path, "-wal")).unwrap();
        drop((db, later));
        assert!(matches!(refused(&dir, &path), Error::Newer { found: 3, .. }));
    }

    #[test]
    fn a_file_of_an_earlier_version_becomes_current_with_all_that_it_holds() {
        let (_dir, path) = file();
        let earlier = Connection::open(&path).unwrap();
        earlier.execute_batch(MIGRATIONS[0]).unwrap();
        earlier.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        earlier.pragma_update(None, "user_version", 1).unwrap();
        earlier
            .execute_batch(
                "INSERT INTO pool VALUES (1, 'n', '{}'); INSERT INTO binding VALUES (1, 5, 'vm-a', 1, 9, 1, NULL)",
            )
            .unwrap();
        drop(earlier);
        for _ in 0..2 {
            let db = open(&path).unwrap();
            let row = "SELECT pool.id + address + lease + grace_until + next FROM binding JOIN pool ON pool = pool.id";
            assert_eq!(db.query_row(row, [], |row| row.get::<_, i64>(0)).unwrap(), 1 + 5 + 1 + 9);
            assert_eq!(db.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0)).unwrap(), 2);
        }
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
            "INSERT INTO pool VALUES (1, 'n', '{}', 0); INSERT INTO binding VALUES (1, 5, 'vm-a', 1, NULL, 0, NULL)",
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
