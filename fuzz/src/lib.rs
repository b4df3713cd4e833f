//! Every parser of an outsider's bytes, as a function of bytes that must not panic whatever they are, and that asserts what
//! must hold for whoever relies on it.
//!
//! `fuzz/run` has `cargo fuzz` find new bytes; `tests/replay.rs` replays those that were worth keeping (`corpus/`).
//! Read in this order: [`TARGETS`], then the module of what you look for: `suite` (configuration and those of others, notify datagrams,
//! inherited fds, orders, pulse pages), `http` (requests and fields), `kept` (connection tables and cache files).

mod http;
mod kept;
mod suite;

pub use http::{fields, plain, strict};
pub use kept::{record, table};
pub use suite::{config, import, listen_fds, notify, order, pulse};

/// A target: its name, which is its corpus's too, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("config", config),
    ("fields", fields),
    ("import", import),
    ("listen_fds", listen_fds),
    ("notify", notify),
    ("order", order),
    ("plain", plain),
    ("pulse", pulse),
    ("record", record),
    ("strict", strict),
    ("table", table),
];

/// A sealed memory file with these bytes, as one process passes it to another.
fn memory_file(bytes: &[u8]) -> std::fs::File {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::io::Write;
    let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memory file");
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes).expect("room in memory");
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).expect("its seals");
    file
}
