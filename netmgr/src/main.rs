//! `netmgr`; all of it is the library's, where tests and fuzzing reach it.

fn main() {
    netmgr::main()
}
