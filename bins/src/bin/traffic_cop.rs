//! traffic_cop
fn main() {}
