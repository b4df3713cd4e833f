//! The server: HTTP on the threaded event engine.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = traffic::cli::parse_or_exit::<traffic::server::Cli>();
    traffic::logging::finish("traffic_server", traffic::server::run(cli))
}
