//! The watcher, and the command that operators use: `traffic_cop start | stop | restart | upgrade | reload | status | drill`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = traffic::cli::parse_or_exit::<traffic::cop::Cli>();
    traffic::logging::finish("traffic_cop", traffic::cop::run(cli))
}
