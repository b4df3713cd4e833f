//! traffic_manager
fn main() {}
