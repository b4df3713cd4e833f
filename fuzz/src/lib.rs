//! Every parser of an outsider's bytes, as a function of bytes that must not panic whatever they are, and that asserts what
//! must hold for whoever relies on it.
//!
//! `fuzz/run` has `cargo fuzz` find new bytes; `tests/replay.rs` replays those that were worth keeping (`corpus/`).
//! Read in this order: [`TARGETS`], then the module of what you look for: `suite` (configuration and those of others, notify
//! datagrams, inherited fds, orders, pulse pages, answers to heartbeats, numbers), `http` (requests, fields, names of files),
//! `requests` and `answers` beside hyper, which reads them from a `peer`; `kept` (connection tables and cache files).

mod answers;
mod http;
mod kept;
mod peer;
mod requests;
mod suite;

pub use answers::answers;
pub use http::{fields, files, plain, strict};
pub use kept::{record, table};
pub use requests::requests;
pub use suite::{config, exposition, import, listen_fds, notify, order, probe, pulse, scenario};

/// A target: its name, which is its corpus's too, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("answers", answers),
    ("config", config),
    ("exposition", exposition),
    ("fields", fields),
    ("files", files),
    ("import", import),
    ("listen_fds", listen_fds),
    ("notify", notify),
    ("order", order),
    ("plain", plain),
    ("probe", probe),
    ("pulse", pulse),
    ("record", record),
    ("requests", requests),
    ("scenario", scenario),
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
