//! drill
use crate::exit::Exit;
/// args
#[derive(Debug, clap::Args)]
pub struct DrillArgs {}
/// run
pub fn run(_: &DrillArgs) -> anyhow::Result<Exit> {
    Ok(Exit::Done)
}
