//! traffic_server
fn main() {}
