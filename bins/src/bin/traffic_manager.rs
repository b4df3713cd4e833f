//! The manager: holds the listening sockets, respawns the server.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = traffic::cli::parse_or_exit::<traffic::manager::Cli>();
    traffic::logging::finish("traffic_manager", traffic::manager::run(cli))
}
