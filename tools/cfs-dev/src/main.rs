//! `cfs-dev`: see the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    cfs_dev::command::main()
}
